// The page's elements. Text goes in as text only: nothing that a file, a model or the server says becomes markup.

const byId = (id) => document.getElementById(id);

// make('p', {class: 'quiet', hidden: true}, 'text', node, …); null children are left out.
function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(key, '');
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, String(value));
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// A sign of the page, from its symbols; words beside it say the same.
function sign(name) {
  const space = 'http://www.w3.org/2000/svg';
  const picture = document.createElementNS(space, 'svg');
  picture.setAttribute('class', `sign ${name}`);
  picture.setAttribute('aria-hidden', 'true');
  picture.setAttribute('focusable', 'false');
  const use = document.createElementNS(space, 'use');
  use.setAttribute('href', `#sign-${name}`);
  picture.append(use);
  return picture;
}

// For screen readers: said once, politely.
function say(text) {
  byId('said').textContent = text;
}

const seconds = (count) => new Promise((resolve) => setTimeout(resolve, count * 1000));
