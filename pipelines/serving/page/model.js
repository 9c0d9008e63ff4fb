// The model: what the server says of it, and how the page shows it.

const models = new Map();
let model = null;

const FIGURES = {
  roc_auc: ['ROC AUC', 'how well it ranks; 0.5 is chance, 1 is perfect'],
  sensitivity: ['Sensitivity', 'of those that are it, the share that is found'],
  specificity: ['Specificity', 'of those that are not, the share that is left alone'],
  ppv: ['Positive predictive value', 'of those that are called it, the share that is right'],
  npv: ['Negative predictive value', 'of those that are not called it, the share that is right'],
  accuracy: ['Accuracy', 'the share of right classes'],
  balanced_accuracy: ['Balanced accuracy', 'the same, every class counting alike'],
  average_precision: ['Average precision', 'the area under precision and recall'],
  f1: ['F1', 'sensitivity and predictive value in one'],
  mcc: ['Matthews’ coefficient', '0 is chance, 1 is perfect'],
  brier: ['Brier score', 'error of the probabilities; less is better'],
  log_loss: ['Log loss', 'surprise at the truth; less is better'],
};
const SHOWN_AT_ONCE = 6;
const PARTS = {train: 'training', val: 'validation', test: 'test'};

async function loadModel() {
  const said = await askPatiently('model', null, null, (response) => response.json());
  const before = model;
  models.set(said.model_id, said);
  model = said;
  byId('model-line').replaceChildren(...modelLine(said));
  byId('model-facts').replaceChildren(...modelFacts(said));
  byId('about').hidden = false;
  if (before && before.model_id !== said.model_id) say(`The server now answers with ${said.name} ${said.version}.`);
}

function modelLine(said) {
  const many = said.classes.length > 6;
  const classes = many ? `with one of ${said.classes.length} classes` : listed(said.classes, 'or');
  const positive = `; positive is ${positiveWords(said.positive_classes)}`;
  return ['Model ', make('strong', {}, `${said.name} ${said.version}`), ` answers ${classes}${positive}.`];
}

function modelFacts(said) {
  return [
    make('div', {class: 'columns'}, validationPart(said), make('div', {}, decidingPart(said), identityPart(said))),
  ];
}

const threeDecimals = (value) => (typeof value === 'number' ? value.toFixed(3).replace('-', '−') : '–');

function intervalText({low, high}) {
  if (typeof low !== 'number' || typeof high !== 'number') return '–';
  return Math.min(low, high) < 0
    ? `${threeDecimals(low)} to ${threeDecimals(high)}`
    : `${threeDecimals(low)}–${threeDecimals(high)}`;
}

function validationPart(said) {
  const figures = said.card?.validation ?? {};
  const names = Object.keys(FIGURES).filter((name) => figures[name]);
  const heading = make('h3', {}, 'What it reached on validation');
  if (!names.length) {
    const words = 'This model brings no validation figures: how often it is right is not known here.';
    return make('div', {}, heading, make('p', {}, words));
  }
  const count = total(said.card.images?.val);
  const two = said.classes.length === 2 && said.positive_classes.length === 1;
  const whose = two ? `“it” is ${said.positive_classes[0]}` : 'the mean over classes, each against the rest';
  const pictures = count ? `${whole(count)} pictures` : 'pictures';
  const basis = `On ${pictures} that it was not trained with, by the most probable class; ${whose}.`;
  const parts = [heading, make('p', {class: 'quiet'}, basis), figureTable(names.slice(0, SHOWN_AT_ONCE), figures)];
  if (names.length > SHOWN_AT_ONCE) {
    parts.push(
      make('details', {}, make('summary', {}, 'More figures'), figureTable(names.slice(SHOWN_AT_ONCE), figures)),
    );
  }
  const caution = 'On other pictures, from another device or other patients, it may reach less.';
  return make('div', {}, ...parts, make('p', {class: 'quiet'}, caution));
}

function figureTable(names, figures) {
  const header = make(
    'tr',
    {},
    ...['Figure', 'Value', '95 % interval'].map((text) => make('th', {scope: 'col'}, text)),
  );
  const rows = names.map((name) => {
    const [label, meaning] = FIGURES[name];
    const head = make('th', {scope: 'row'}, label, make('span', {class: 'basis'}, meaning));
    return make(
      'tr',
      {},
      head,
      make('td', {}, threeDecimals(figures[name].value)),
      make('td', {}, intervalText(figures[name])),
    );
  });
  return make('table', {class: 'figures'}, make('thead', {}, header), make('tbody', {}, ...rows));
}

function decidingPart(said) {
  const heading = make('h3', {}, 'How it decides');
  const what = positiveWords(said.positive_classes);
  if (!said.thresholds) {
    return make(
      'div',
      {},
      heading,
      make('p', {}, `It has no threshold, so it gives probabilities and decides nothing.`),
    );
  }
  const [low, high] = limitsOf(said.thresholds);
  const [from, to] = comparable(low, high);
  const lines = [decisionLine('negative', low > 0 ? `below ${from}` : 'never')];
  if (low < high) lines.push(decisionLine('refer', high > 1 ? `from ${from}` : `from ${from} to below ${to}`));
  lines.push(decisionLine('positive', high > 1 ? 'never' : `from ${to}`));
  return make(
    'div',
    {},
    heading,
    make('p', {}, `By the probability of ${what}:`),
    make('ul', {class: 'legend'}, ...lines),
    ...reachedWords(said).map((text) => make('p', {class: 'quiet'}, text)),
  );
}

function decisionLine(decision, text) {
  return make('li', {}, sign(decision), make('strong', {}, DECISIONS[decision].word), make('span', {}, text));
}

// What the limits reached on validation. A share says little of a few pictures, so counts stand beside it.
function reachedWords(said) {
  const {decided, cases, referred} = said.thresholds;
  if (decided && cases && referred) {
    const words = calledWords(decided, decided);
    const first = `On validation ${whole(referred)} of ${counted(cases, 'picture', 'pictures')}`;
    return [`${first} ${referred === 1 ? 'was' : 'were'} referred.${words && ` Of the rest, ${words}.`}`];
  }
  const words = calledWords(said.thresholds, decided ?? validationCounts(said));
  return words ? [`On validation ${words}.`] : [];
}

function validationCounts(said) {
  const counts = said.card?.images?.val;
  if (!counts) return {};
  const positives = total(Object.fromEntries(said.positive_classes.map((name) => [name, counts[name] ?? 0])));
  return {positives, negatives: total(counts) - positives};
}

const FEW = 20;

function calledWords({sensitivity, specificity}, {positives, negatives}) {
  const first = rightCount(sensitivity, positives);
  const second = rightCount(specificity, negatives);
  if (first === null || second === null) {
    if (typeof sensitivity !== 'number' || typeof specificity !== 'number') return '';
    return (
      `${perCent(sensitivity)} of the positive ones were called positive, ` +
      `${perCent(specificity)} of the others negative`
    );
  }
  if (!positives && !negatives) return '';
  const part = (right, count, kind, verb) => {
    if (!count) return `none was ${kind}`;
    const share = count < FEW ? '' : ` (${perCent(right / count)})`;
    return `${whole(right)} of ${counted(count, `${kind} one`, `${kind} ones`)}${share}${verb} ${kind}`;
  };
  const called = (right, count) => (count === 1 || right === 1 ? ' was called' : ' were called');
  const one = part(first, positives, 'positive', called(first, positives));
  return `${one}, and ${part(second, negatives, 'negative', positives ? '' : called(second, negatives))}`;
}

// How many of some were called what they are; null where share and number are not of the same pictures.
function rightCount(share, count) {
  if (count === 0) return 0;
  if (typeof share !== 'number' || typeof count !== 'number') return null;
  const right = Math.round(share * count);
  return Math.abs(share * count - right) < 1e-6 ? right : null;
}

const total = (counts) => Object.values(counts ?? {}).reduce((sum, count) => sum + count, 0);

function identityPart(said) {
  const facts = make('dl', {class: 'facts'});
  const fact = (name, ...value) => facts.append(make('div', {}, make('dt', {}, name), make('dd', {}, ...value)));
  fact('Model', `${said.name} ${said.version}`);
  fact('Made', dateText(said.card?.created_at));
  const parts = Object.entries(PARTS).filter(([part]) => total(said.card?.images?.[part]));
  const counts = parts.map(([part, name]) => `${whole(total(said.card.images[part]))} for ${name}`);
  fact('Pictures', counts.length ? listed(counts) : 'not known');
  fact('Classes', listed(said.classes));
  fact('Positive', listed(said.positive_classes));
  if (said.input_size) fact('It sees', `${said.input_size} × ${said.input_size} pixels, ${said.precision}`);
  fact('Identity', ...copyable(said.model_id, 'identity of the model'));
  return make('div', {}, make('h3', {}, 'What it is'), facts);
}

function dateText(moment) {
  const date = new Date(moment ?? '');
  return Number.isNaN(date.getTime()) ? 'not known' : date.toLocaleDateString('en-GB', {dateStyle: 'long'});
}

// A long hash, shortened, with a button that copies all of it.
function copyable(text, what) {
  const button = make('button', {type: 'button', class: 'small', 'aria-label': `Copy the ${what}`}, 'Copy');
  button.onclick = async () => {
    button.textContent = (await copied(text)) ? 'Copied' : 'Not copied';
    say(button.textContent);
    await seconds(2);
    button.textContent = 'Copy';
  };
  return [make('code', {title: text}, `${text.slice(0, 12)}…${text.slice(-4)}`), ' ', button];
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without TLS and away from this machine there is no such thing; the old way needs a field.
    const field = make('textarea', {class: 'unseen', 'aria-hidden': 'true'}, text);
    const focused = document.activeElement;
    document.body.append(field);
    field.select();
    const done = document.execCommand('copy');
    field.remove();
    focused?.focus();
    return done;
  }
}
