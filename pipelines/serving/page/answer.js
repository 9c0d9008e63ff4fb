// The answer to the picture that is shown.

const CLASSES_AT_ONCE = 10;
const ROOM_FOR_CLASSES = 12;

function showAnswer(entry) {
  byId('answer').replaceChildren(...answerParts(entry));
}

// What is said of a picture on its way changes when the server goes or comes back.
function retell() {
  if (shownEntry && isOpen(shownEntry)) showAnswer(shownEntry);
}

function answerParts(entry) {
  if (!entry) return beforeTheFirst();
  if (entry.state === 'answered') return answered(entry);
  if (entry.state === 'failed') return failed(entry);
  if (entry.state === 'cancelled') return cancelled(entry);
  const turn = entry.state === 'reading' ? 'Being read …' : 'Waiting for its turn …';
  const words = waiting ? 'Waiting for the server …' : turn;
  return [make('div', {class: 'verdict pending'}, sign('waiting'), make('p', {class: 'word'}, words)), factsOf(entry)];
}

function beforeTheFirst() {
  const lines = [
    ['negative', 'The probability is so low that the model says no.'],
    ['refer', 'The model does not decide. A person must look.'],
    ['positive', 'The probability is so high that the model says yes.'],
  ];
  const items = lines.map(([decision, text]) => decisionLine(decision, text));
  return [
    make(
      'p',
      {},
      'For each picture you see how probable every class is, and one of three decisions, or two where the ' +
        'model refers nothing:',
    ),
    make('ul', {class: 'legend'}, ...items),
    make('p', {class: 'quiet'}, 'The answer is the very same that the night’s reading of the archive would write.'),
  ];
}

function verdict(kind, word, sentence) {
  return make(
    'div',
    {class: `verdict ${kind}`},
    sign(kind),
    make('div', {}, make('p', {class: 'word'}, word), make('p', {class: 'why'}, sentence)),
  );
}

function answered(entry) {
  const {answer} = entry;
  const own = models.get(answer.model.model_id);
  const parts = [];
  if (answer.decision === null) {
    parts.push(
      verdict(
        'none',
        'No decision',
        'This model has no threshold, so it gives probabilities only. What they ' +
          'mean for a picture is for a person to say.',
      ),
    );
  } else {
    const sentence = own?.thresholds ? decisionSentence(answer, own) : '';
    parts.push(verdict(answer.decision, DECISIONS[answer.decision].word, sentence));
    if (own?.thresholds) parts.push(scaleOf(answer, own), ...explanations(answer, own));
  }
  parts.push(make('h3', {}, 'Probability of each class'), ...bars(answer, own), factsOf(entry));
  return parts;
}

function explanations(answer, own) {
  const parts = [];
  if (answer.decision === 'refer') {
    parts.push(make('div', {class: 'meaning'}, make('h3', {}, 'What refer means'), make('p', {}, referMeaning(own))));
  }
  const difference = differenceSentence(answer, own);
  if (difference && answer.decision !== 'refer') {
    const heading = make('h3', {}, 'Why this is not the most probable class');
    parts.push(make('div', {class: 'meaning'}, heading, make('p', {}, difference)));
  } else if (difference) {
    parts.push(
      make(
        'details',
        {},
        make('summary', {}, 'Why the most probable class is not the decision'),
        make('p', {}, difference),
      ),
    );
  }
  return parts;
}

// Where the probability lies among the model's limits. The sentence above it says the same in words.
function scaleOf(answer, own) {
  const [low, high] = limitsOf(own.thresholds);
  const to = Math.min(high, 1);
  const zone = (kind, from, until) => {
    const part = make('span', {class: `zone ${kind}`});
    part.style.width = `${(until - from) * 100}%`;
    return part;
  };
  const marker = make('span', {class: 'marker'});
  marker.style.left = `${answer.p_positive * 100}%`;
  const track = make(
    'div',
    {class: 'track'},
    zone('negative', 0, low),
    zone('refer', low, to),
    zone('positive', to, 1),
    marker,
  );
  const ends = make(
    'div',
    {class: 'ends'},
    make('span', {}, '0'),
    make('span', {}, `probability of ${positiveWords(own.positive_classes)}`),
    make('span', {}, `100${SPACE}%`),
  );
  return make('div', {class: 'scale', 'aria-hidden': 'true'}, track, ends);
}

function bars(answer, own) {
  const ranked = Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]);
  const positives = own?.positive_classes ?? [];
  const list = (entries) =>
    make('ul', {class: 'classes'}, ...entries.map(([name, share]) => bar(name, share, answer, positives)));
  if (ranked.length <= ROOM_FOR_CLASSES) return [list(ranked)];
  const rest = ranked.slice(CLASSES_AT_ONCE);
  const together = perCent(rest.reduce((sum, [, share]) => sum + share, 0));
  const summary = make('summary', {}, `${rest.length} more classes, together ${together}`);
  return [list(ranked.slice(0, CLASSES_AT_ONCE)), make('details', {}, summary, list(rest))];
}

function bar(name, share, answer, positives) {
  const fill = make('span', {class: 'fill'});
  fill.style.width = `${share * 100}%`;
  const tag = positives.includes(name) ? make('span', {class: 'tag'}, 'positive class') : null;
  const most = name === answer.predicted_label ? make('span', {class: 'tag most'}, 'most probable') : null;
  return make(
    'li',
    {class: most ? 'most' : null},
    make('span', {class: 'name'}, name, ' ', most, ' ', tag),
    make('span', {class: 'share'}, perCent(share)),
    make('span', {class: 'rail', 'aria-hidden': 'true'}, fill),
  );
}

function failed(entry) {
  const [reason, cure] = reasonOf(entry.problem.code);
  const parts = [verdict('failed', 'No answer', reason), make('p', {}, cure)];
  if (entry.problem.detail) parts.push(make('p', {class: 'quiet'}, `The server says: ${entry.problem.detail}`));
  if (entry.problem.code === 'internal') parts.push(againButton(entry, 'Try again'));
  return [...parts, factsOf(entry)];
}

function cancelled(entry) {
  return [
    verdict('none', 'Not read', 'You cancelled before it was answered.'),
    againButton(entry, 'Read it now'),
    factsOf(entry),
  ];
}

function againButton(entry, text) {
  const button = make('button', {type: 'button'}, text);
  button.onclick = () => {
    readAgain([entry]);
    // The button is gone; the keyboard stays where it was.
    byId('answer').focus();
  };
  return make('p', {}, button);
}

function factsOf(entry) {
  const facts = make('dl', {class: 'facts'});
  const fact = (name, ...value) => facts.append(make('div', {}, make('dt', {}, name), make('dd', {}, ...value)));
  const {answer} = entry;
  const pixels = answer ? `, ${answer.width} × ${answer.height} pixels` : '';
  fact('File', `${byteText(entry.file.size)}${pixels}`);
  if (answer) {
    fact('SHA-256', ...copyable(answer.content_sha256, 'SHA-256 of the file'));
    fact('Model', `${answer.model.name} ${answer.model.version}`);
    fact('Read', `by ${answer.decoder}, in ${answer.milliseconds.toFixed(0)}${SPACE}ms`);
  }
  return facts;
}

// The answer in one line, for the table and for screen readers.
function inWords(entry) {
  if (entry.state === 'answered') {
    const {answer} = entry;
    const label = `${answer.predicted_label} ${perCent(answer.probabilities[answer.predicted_label])}`;
    return `${answer.decision ? DECISIONS[answer.decision].word : 'No decision'}. Most probable: ${label}.`;
  }
  return entry.state === 'failed' ? `No answer. ${reasonOf(entry.problem.code)[0]}` : '';
}
