// Numbers and sentences.

const SPACE = '\u00a0';
const DECISIONS = {
  negative: {word: 'Negative', rank: 1},
  refer: {word: 'Refer', rank: 2},
  positive: {word: 'Positive', rank: 3},
};

// What is wrong with a file, and what to do about it; by the code of the answer.
const REASONS = {
  not_an_image: ['This is not a picture of a kind that is read.', 'Choose a JPEG, PNG, TIFF, BMP, GIF or WebP file.'],
  unsupported: [
    'This is a picture of a variant that cannot be read faithfully.',
    'Export it again as an ordinary PNG, TIFF or JPEG.',
  ],
  truncated: ['The file is damaged, or it ends too early.', 'Copy or export it again from where it came from.'],
  too_large: ['The file has more bytes or pixels than are read.', 'Export it smaller.'],
  decoder_crashed: [
    'Decoding this file stopped the program that reads pictures.',
    'Nothing else was harmed. Export the picture again, as PNG.',
  ],
  timed_out: ['Decoding this file took too long.', 'Export it smaller, or in another format.'],
  empty: ['The file is empty.', 'Copy or export it again from where it came from.'],
  unreadable: [
    'The browser cannot read this file.',
    'It is a folder, or it was moved or changed after it was chosen. Choose it again.',
  ],
  cut: [
    'The server hung up while this file was sent.',
    'It may be too large for the server. Export it smaller, or ask whoever runs the server.',
  ],
  internal: ['The server failed on this file.', 'Try it again; if it fails again, tell whoever runs the server.'],
};
const OTHER_REASON = ['The server did not take this file.', 'Try it again, or tell whoever runs the server.'];

const reasonOf = (code) => REASONS[code] ?? OTHER_REASON;

function perCent(share) {
  if (share > 0 && share < 0.0005) return `<${SPACE}0.1${SPACE}%`;
  if (share < 1 && share >= 0.9995) return `>${SPACE}99.9${SPACE}%`;
  return `${(share * 100).toFixed(1)}${SPACE}%`;
}

// Per cents of one sentence: each with so many decimals that it shows, and that what differs looks different.
function comparable(...shares) {
  const decimals = shares.map(() => 1);
  const text = (place) => (shares[place] * 100).toFixed(decimals[place]);
  const unclear = (place) =>
    (shares[place] > 0 && Number(text(place)) === 0) ||
    (shares[place] < 1 && Number(text(place)) === 100) ||
    shares.some((other, at) => other !== shares[place] && Number(text(at)) === Number(text(place)));
  for (let round = 0; round < 6; round += 1) {
    const places = shares.map((_, place) => place).filter(unclear);
    for (const place of places) decimals[place] += 1;
  }
  return shares.map((_, place) => `${text(place)}${SPACE}%`);
}

function byteText(count) {
  if (count < 1000) return `${count}${SPACE}bytes`;
  if (count < 1e6) return `${(count / 1e3).toFixed(count < 1e4 ? 1 : 0)}${SPACE}kB`;
  return `${(count / 1e6).toFixed(1)}${SPACE}MB`;
}

const whole = (count) => count.toLocaleString('en');
const counted = (count, one, many) => `${whole(count)} ${count === 1 ? one : many}`;

function listed(names, last = 'and') {
  if (names.length < 2) return names.join('');
  return `${names.slice(0, -1).join(', ')} ${last} ${names[names.length - 1]}`;
}

// What p_positive is the probability of.
function positiveWords(positives) {
  if (positives.length === 1) return positives[0];
  return positives.length <= 3 ? listed(positives, 'or') : `one of the ${positives.length} positive classes`;
}

// Where negative ends and where positive begins; equal where the model has no refer band.
function limitsOf(thresholds) {
  const {threshold, refer_low: low, refer_high: high} = thresholds;
  return typeof low === 'number' && typeof high === 'number' ? [low, high] : [threshold, threshold];
}

// Why an answer's decision is what it is.
function decisionSentence(answer, model) {
  const share = answer.p_positive;
  const [low, high] = limitsOf(model.thresholds);
  const [is, from, to] = comparable(share, low, high);
  const what = `The probability of ${positiveWords(model.positive_classes)} is ${is}`;
  if (answer.decision === 'refer') {
    if (low <= 0) return `${what}. Below ${to} this model leaves every picture to a person.`;
    if (high > 1) return `${what}. From ${from} on this model leaves every picture to a person.`;
    return `${what}, between ${from} and ${to}: in this range the model leaves the decision to a person.`;
  }
  if (answer.decision === 'positive') return `${what}. From ${to} on this model says positive.`;
  return `${what}. Below ${from} this model says negative.`;
}

function referMeaning(model) {
  const {cases, referred} = model.thresholds;
  const often = cases ? ` Of its ${whole(cases)} validation pictures, ${whole(referred)} fell into this range.` : '';
  return (
    'A person must look at this picture. The model neither rules ' +
    `${positiveWords(model.positive_classes)} out nor calls it: this is not a finding of its own.${often}`
  );
}

// Why class and decision differ; '' where they say the same.
function differenceSentence(answer, model) {
  const label = answer.predicted_label;
  const called = model.positive_classes.includes(label) ? 'positive' : 'negative';
  if (answer.decision === called) return '';
  const thresholds = model.thresholds;
  const [low, high] = limitsOf(thresholds);
  const limit = answer.decision === 'positive' ? high : low;
  const [own, positive, at] = comparable(answer.probabilities[label], answer.p_positive, limit);
  const first = `The most probable class is ${label} (${own}). The decision asks another question:`;
  const whose = `the probability of ${positiveWords(model.positive_classes)} (${positive})`;
  const target = thresholds.target_sensitivity;
  const aim = target ? `at least ${perCent(target)} of the positive ones are found` : '';
  const goal = target ? ` The limits were chosen on validation pictures, so that ${aim}.` : '';
  if (answer.decision === 'refer') {
    return (
      `${first} whether ${whose} is low enough to say negative or high enough to say positive. ` +
      `It is neither.${goal}`
    );
  }
  const reaches = answer.decision === 'positive' ? 'reaches' : 'stays below';
  return `${first} ${whose} ${reaches} ${at}, where this model draws the line.${goal}`;
}
