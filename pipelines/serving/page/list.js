// The pictures that were chosen: sent a few at a time, and shown as a table where there are several.

const AT_ONCE = 3;
const THUMBS_AT_ONCE = 2;

const entries = [];
let made = 0;
let inFlight = 0;
const order = {column: 'place', up: true};

const share = (entry) => entry.answer?.probabilities[entry.answer.predicted_label] ?? -1;
const rank = (entry) =>
  entry.state === 'answered' ? (DECISIONS[entry.answer.decision]?.rank ?? 0.5) : entry.state === 'failed' ? 0 : -1;
const collator = new Intl.Collator('en', {numeric: true});

// By column: heading, what is compared (text or number), and whether the first click shows the highest first.
const COLUMNS = {
  place: ['No.', (entry) => entry.place, false],
  name: ['Picture', (entry) => entry.name, false],
  decision: ['Decision', rank, true],
  label: ['Most probable class', (entry) => entry.answer?.predicted_label ?? '', false],
  share: ['Its probability', share, true],
  positive: ['Probability of positive', (entry) => entry.answer?.p_positive ?? -1, true],
  size: ['Size', (entry) => entry.file.size, true],
};

function addFiles(files) {
  const added = files.map((file) => {
    made += 1;
    // A pasted picture is called image.png by every browser.
    return {
      place: made,
      file,
      name: file.name || `picture ${made}`,
      state: 'waiting',
      answer: null,
      problem: null,
      stop: new AbortController(),
      row: null,
    };
  });
  entries.push(...added);
  for (const entry of added) drawRow(entry);
  select(added[0]);
  pump();
}

function pump() {
  while (inFlight < AT_ONCE) {
    const next = entries.find((entry) => entry.state === 'waiting');
    if (!next) break;
    inFlight += 1;
    readEntry(next).finally(() => {
      inFlight -= 1;
      pump();
    });
  }
  tally();
}

async function readEntry(entry) {
  entry.state = 'reading';
  changed(entry);
  try {
    if (entry.file.size === 0)
      throw new Problem(400, (await isReadable(entry.file)) ? 'empty' : 'unreadable', '', 0, '');
    entry.answer = await askPatiently('predict', entry.file, entry.stop.signal, (response) => response.json());
    entry.state = 'answered';
    if (!models.has(entry.answer.model.model_id)) refreshModel();
  } catch (error) {
    entry.state = entry.stop.signal.aborted ? 'cancelled' : 'failed';
    const {code = 'internal', detail = '', requestId = ''} = error;
    entry.problem = entry.state === 'failed' ? {code, detail, requestId} : null;
  }
  changed(entry);
}

// The champion was promoted meanwhile: ask what answers now.
async function refreshModel() {
  try {
    await loadModel();
    for (const entry of entries) changed(entry, false);
  } catch {
    // The answer itself names its model.
  }
}

function changed(entry, spoken = true) {
  if (!entries.includes(entry)) return;
  fillRow(entry);
  if (entry === shownEntry) {
    showAnswer(entry);
    if (spoken && inWords(entry)) say(`${entry.name}: ${inWords(entry)}`);
  }
}

function readAgain(some) {
  for (const entry of some) Object.assign(entry, {state: 'waiting', problem: null, stop: new AbortController()});
  for (const entry of some) changed(entry);
  pump();
}

function cancelOrGoOn() {
  const stopped = entries.filter((entry) => entry.state === 'cancelled');
  const open = entries.filter(isOpen);
  if (!open.length) {
    readAgain(stopped);
    return;
  }
  for (const entry of open) {
    entry.stop.abort();
    if (entry.state === 'waiting') {
      entry.state = 'cancelled';
      changed(entry);
    }
  }
  tally();
}

const isOpen = (entry) => entry.state === 'waiting' || entry.state === 'reading';

function tally() {
  const several = entries.length > 1;
  byId('list').hidden = !several;
  const open = entries.filter(isOpen).length;
  const stopped = entries.filter((entry) => entry.state === 'cancelled').length;
  byId('progress').max = entries.length || 1;
  byId('progress').value = entries.length - open;
  byId('progress').hidden = open === 0;
  byId('cancel').hidden = open + stopped === 0;
  byId('cancel').textContent = open ? 'Cancel' : 'Read the rest';
  byId('csv').disabled = !entries.some((entry) => entry.answer || entry.problem);
  byId('tally').replaceChildren(...tallyParts(open, stopped));
  if (several && open === 0 && tally.before > 0) {
    sortRows();
    say(`All done. ${byId('tally').textContent}`);
  }
  tally.before = open;
}
tally.before = 0;

function tallyParts(open, stopped) {
  const of = (decision) =>
    entries.filter((entry) => entry.state === 'answered' && entry.answer.decision === decision).length;
  const failures = entries.filter((entry) => entry.state === 'failed').length;
  const parts = [make('span', {}, counted(entries.length, 'picture', 'pictures'))];
  const chip = (kind, count, word) => {
    if (count) parts.push(' ', make('span', {class: 'chip'}, sign(kind), `${whole(count)} ${word}`));
  };
  for (const decision of ['positive', 'refer', 'negative']) chip(decision, of(decision), decision);
  chip('none', of(null), 'without decision');
  chip('failed', failures, 'without answer');
  chip('waiting', open, 'to come');
  chip('none', stopped, 'cancelled');
  const versions = new Set(entries.filter((entry) => entry.answer).map(({answer}) => answer.model.version));
  // The champion was promoted in between.
  if (versions.size > 1)
    parts.push(' ', make('span', {}, `answered by versions ${listed([...versions].sort(collator.compare))}`));
  return parts;
}

function drawColumns() {
  for (const [column, [title, , highestFirst]] of Object.entries(COLUMNS)) {
    const button = make(
      'button',
      {type: 'button', class: 'sort'},
      title,
      make('span', {class: 'arrow', 'aria-hidden': 'true'}),
    );
    button.onclick = () => {
      order.up = order.column === column ? !order.up : !highestFirst;
      order.column = column;
      sortRows();
      say(`Sorted by ${title}, ${order.up ? 'lowest' : 'highest'} first.`);
    };
    byId('columns').append(make('th', {scope: 'col', class: `of-${column}`}, button));
  }
  sortRows();
}

function sortRows() {
  const value = COLUMNS[order.column][1];
  const compared = (one, other) => {
    const [left, right] = [value(one), value(other)];
    const difference = typeof left === 'string' ? collator.compare(left, right) : left - right;
    return (order.up ? difference : -difference) || one.place - other.place;
  };
  entries.sort(compared);
  const focused = document.activeElement;
  byId('rows').append(...entries.map((entry) => entry.row));
  if (focused !== document.activeElement) focused?.focus();
  Object.keys(COLUMNS).forEach((column, place) => {
    const sorted = column === order.column ? (order.up ? 'ascending' : 'descending') : 'none';
    byId('columns').children[place].setAttribute('aria-sort', sorted);
  });
  showPlace();
}

function drawRow(entry) {
  const canvas = make('canvas', {class: 'thumb', width: 1, height: 1, 'aria-hidden': 'true'});
  const button = make('button', {type: 'button', class: 'link'}, entry.name);
  const cells = Object.keys(COLUMNS).map((column) =>
    make(column === 'name' ? 'th' : 'td', {class: `of-${column}`, scope: column === 'name' ? 'row' : null}),
  );
  cells[0].textContent = String(entry.place);
  cells[1].append(make('span', {class: 'named'}, make('span', {class: 'frame'}, canvas), button));
  cells[6].textContent = byteText(entry.file.size);
  entry.row = make('tr', {}, ...cells);
  entry.row.onclick = () => select(entry);
  byId('rows').append(entry.row);
  thumbsSeen.observe(entry.row);
  Object.assign(entry, {canvas, button, cells});
  fillRow(entry);
}

const STATES = {waiting: 'Waiting', reading: 'Being read', cancelled: 'Cancelled', failed: 'No answer'};

function fillRow(entry) {
  const [, , decision, label, own, positive] = entry.cells;
  const {answer} = entry;
  const kind = answer ? (answer.decision ?? 'none') : ({failed: 'failed', cancelled: 'none'}[entry.state] ?? 'waiting');
  const word = answer ? (DECISIONS[answer.decision]?.word ?? 'No decision') : STATES[entry.state];
  decision.replaceChildren(make('span', {class: `decided ${kind}`}, sign(kind), word));
  label.textContent = answer?.predicted_label ?? (entry.problem ? reasonOf(entry.problem.code)[0] : '');
  label.classList.toggle('quiet', !answer);
  own.textContent = answer ? perCent(share(entry)) : '';
  positive.textContent = answer && answer.p_positive !== null ? perCent(answer.p_positive) : '';
}

// Thumbnails are drawn for rows that are on the screen, a few at a time.
const thumbsWanted = [];
let thumbsInWork = 0;
const thumbsSeen = new IntersectionObserver((seen) => {
  for (const {target, isIntersecting} of seen) {
    const entry = entries.find((one) => one.row === target);
    if (!isIntersecting || !entry) continue;
    thumbsSeen.unobserve(target);
    thumbsWanted.push(entry);
  }
  drawThumbs();
});

function drawThumbs() {
  while (thumbsInWork < THUMBS_AT_ONCE && thumbsWanted.length) {
    const entry = thumbsWanted.shift();
    thumbsInWork += 1;
    thumbnail(entry.file, entry.canvas)
      .catch(() => entry.canvas.replaceWith(sign('failed')))
      .finally(() => {
        thumbsInWork -= 1;
        drawThumbs();
      });
  }
}

function removeEntries(some) {
  for (const entry of some) {
    entry.stop.abort();
    entry.row.remove();
    thumbsSeen.unobserve(entry.row);
    entries.splice(entries.indexOf(entry), 1);
  }
  if (!entries.length) made = 0;
  tally();
}
