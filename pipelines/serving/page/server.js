// What the page asks its server, and how it waits. The token lives in this variable and nowhere else.

let token = '';
let waiting = null;
let sinceAway = 0;
let wake = () => {};

const LONGEST_WAIT = 30;
const TRIES_PER_FILE = 3;

class Problem extends Error {
  constructor(status, code, detail, retryAfter, tokenUsed, requestId = '') {
    super(code);
    Object.assign(this, {status, code, detail, retryAfter, tokenUsed, requestId});
  }

  // Whether the same request may be answered later.
  get passes() {
    return [0, 401, 408, 429, 502, 503, 504].includes(this.status) && !['unreadable', 'cut'].includes(this.code);
  }
}

async function problemOf(response, tokenUsed) {
  let said = {};
  try {
    said = await response.json();
  } catch {
    // A proxy's own page, perhaps.
  }
  const code = typeof said.error_code === 'string' ? said.error_code : '';
  const detail = typeof said.detail === 'string' ? said.detail : '';
  const requestId = typeof said.request_id === 'string' ? said.request_id : '';
  const retryAfter = Number(response.headers.get('Retry-After')) || 0;
  const large = response.status === 413 ? 'too_large' : '';
  return new Problem(response.status, code || large || 'internal', detail, retryAfter, tokenUsed, requestId);
}

async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

// One request. A file goes as bare bytes: neither its name nor its kind as this computer knows it is sent.
async function ask(path, file = null, signal = null) {
  const tokenUsed = token;
  const headers = tokenUsed ? {Authorization: `Bearer ${tokenUsed}`} : {};
  if (file) headers['Content-Type'] = 'application/octet-stream';
  const options = {
    method: file ? 'POST' : 'GET',
    headers,
    body: file,
    signal,
    cache: 'no-store',
    credentials: 'omit',
    redirect: 'error',
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (signal?.aborted) throw error;
    const code = file && !(await isReadable(file)) ? 'unreadable' : 'away';
    throw new Problem(0, code, '', 0, tokenUsed);
  }
  if (!response.ok) throw await problemOf(response, tokenUsed);
  return response;
}

// The same, and where waiting helps it waits: together with all other requests, and says why. `read` takes the body.
async function askPatiently(path, file, signal, read) {
  for (let cuts = 0; ;) {
    if (waiting) await Promise.race([waiting, untilAborted(signal)]);
    signal?.throwIfAborted();
    try {
      const said = await read(await ask(path, file, signal));
      sinceAway = 0;
      if (!waiting) hideBanner();
      return said;
    } catch (error) {
      const broken = error instanceof TypeError && !signal?.aborted;
      const problem = broken ? new Problem(0, 'away', '', 0, token) : error;
      if (!(problem instanceof Problem) || !problem.passes) throw error;
      if (file && problem.status === 0 && (await lives())) {
        // A server that answers others but hangs up on this file does not want it; a browser is not told why.
        cuts += 1;
        if (cuts === TRIES_PER_FILE) throw new Problem(0, 'cut', '', 0, token);
      }
      hold(problem);
    }
  }
}

async function lives() {
  try {
    return (await fetch('healthz', {cache: 'no-store', credentials: 'omit'})).ok;
  } catch {
    return false;
  }
}

function untilAborted(signal) {
  if (!signal) return new Promise(() => {});
  return new Promise((resolve) => signal.addEventListener('abort', resolve, {once: true}));
}

// Let every request wait for what this one needs.
function hold(problem) {
  if (waiting) return;
  if (problem.status === 401) {
    // One that was sent before the token came is simply sent again.
    if (problem.tokenUsed !== token) return;
    const wrong = token !== '';
    token = '';
    pauseUntilWoken();
    askForToken(wrong);
    return;
  }
  sinceAway += 1;
  const given = Math.min(problem.retryAfter, LONGEST_WAIT);
  const pause = given || Math.min(2 ** sinceAway, LONGEST_WAIT);
  pauseUntilWoken();
  showBanner(...wordsOf(problem), 'Try now', () => wake(), pause);
}

function wordsOf(problem) {
  if (problem.status === 429 || problem.code === 'too_many_connections')
    return ['The server is busy.', 'Your pictures wait here and are sent when there is room.'];
  if (problem.code === 'not_ready')
    return ['The server is not ready yet.', 'It loads and tests its model. The page goes on by itself.'];
  if (problem.status === 503)
    return ['The server cannot answer now.', `${problem.detail} The page tries again by itself.`];
  return [
    'The server does not answer.',
    'Your pictures stay here. Look at the network; the page tries again by itself.',
  ];
}

function pauseUntilWoken() {
  waiting = new Promise((resolve) => {
    wake = () => {
      waiting = null;
      clearInterval(countdown);
      byId('banner-count').textContent = '';
      retell();
      resolve();
    };
  });
  retell();
}

let countdown = 0;

function showBanner(title, text, button, action, pause = 0) {
  byId('banner-title').textContent = title;
  byId('banner-text').textContent = text;
  byId('banner-button').textContent = button;
  byId('banner-button').onclick = action;
  if (byId('banner').hidden) say(`${title} ${text}`);
  byId('banner').hidden = false;
  clearInterval(countdown);
  let left = Math.ceil(pause);
  const tell = () => {
    byId('banner-count').textContent = left > 0 ? `Next try in ${left}${SPACE}s.` : '';
  };
  tell();
  if (!left) return;
  countdown = setInterval(() => {
    left -= 1;
    tell();
    if (left <= 0) wake();
  }, 1000);
}

function hideBanner() {
  byId('banner').hidden = true;
}

function askForToken(wrong) {
  hideBanner();
  const field = byId('token');
  field.value = '';
  byId('token-wrong').textContent = wrong ? 'The server did not accept this token. Compare it letter by letter.' : '';
  field.setAttribute('aria-invalid', String(wrong));
  byId('token-dialog').showModal();
  field.focus();
}

function takeToken(event) {
  event.preventDefault();
  // An HTTP header takes no other characters, and a token with one would look like a network that is away.
  const given = byId('token').value.trim();
  byId('token').value = '';
  if (!/^[\x21-\x7e]+$/.test(given)) {
    byId('token-wrong').textContent = given
      ? 'A token has no spaces, accents or signs of other scripts.'
      : 'Enter the token.';
    byId('token').setAttribute('aria-invalid', 'true');
    return;
  }
  token = given;
  byId('token-dialog').close();
  wake();
}

function tokenLater() {
  if (token || !waiting) return;
  showBanner('A token is needed.', 'Without it this server does not answer.', 'Enter the token', () =>
    askForToken(false),
  );
}
