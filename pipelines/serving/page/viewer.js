// The picture, as the browser draws it or as the server's preview, and how it is zoomed and moved.

const PREVIEW_SIDE = 2048;
const THUMB_SIDE = 128;
const HEAD_BYTES = 262144;
const STEP = 1.25;

const view = {width: 0, height: 0, scale: 1, x: 0, y: 0, fitted: true};
let shownUrl = '';
let shownEntry = null;

// Who draws a file so that it looks as the model is given it: 'browser', 'server', or '' for what is no picture.
// Browsers differ on deep samples and CMYK, move what is animated, and know no TIFF.
function drawerOf(bytes) {
  const text = (start, length) => String.fromCharCode(...bytes.subarray(start, start + length));
  if (['II*\0', 'MM\0*', 'II+\0', 'MM\0+', 'GIF8'].includes(text(0, 4))) return 'server';
  if (text(1, 3) === 'PNG') return plainPng(bytes, text) ? 'browser' : 'server';
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return componentsOfJpeg(bytes) === 4 ? 'server' : 'browser';
  if (text(0, 4) === 'RIFF' && text(8, 4) === 'WEBP') {
    return text(12, 4) === 'VP8X' && bytes[20] & 2 ? 'server' : 'browser';
  }
  return text(0, 2) === 'BM' ? 'browser' : '';
}

function plainPng(bytes, text) {
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let place = 8; place + 12 <= bytes.length; place += 12 + data.getUint32(place)) {
    const chunk = text(place + 4, 4);
    if (chunk === 'CgBI' || chunk === 'acTL' || (chunk === 'IHDR' && bytes[place + 16] === 16)) return false;
    if (chunk === 'IDAT') return true;
  }
  return true;
}

function componentsOfJpeg(bytes) {
  let place = 2;
  while (place + 9 < bytes.length && bytes[place] === 0xff) {
    const marker = bytes[place + 1];
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) return bytes[place + 9];
    place += marker === 0xff ? 1 : 2 + bytes[place + 2] * 256 + bytes[place + 3];
  }
  return 3;
}

// A drawn picture of a file: {image, url, by}; `url` is the caller's to revoke. Throws a Problem where none can be had.
async function drawn(file, side, signal) {
  const head = new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer());
  const drawer = drawerOf(head);
  if (!drawer) throw new Problem(415, 'not_an_image', '', 0, '');
  if (drawer === 'browser') {
    try {
      return await loaded(file, 'browser');
    } catch {
      // The server's decoder may know what this browser does not.
    }
  }
  const png = await askPatiently(`preview?side=${side}`, file, signal, (response) => response.blob());
  return loaded(png, 'server');
}

async function loaded(blob, by) {
  const url = URL.createObjectURL(blob);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch (error) {
    URL.revokeObjectURL(url);
    throw error;
  }
  return {image, url, by};
}

async function showPicture(entry) {
  shownEntry = entry;
  byId('empty').hidden = entry !== null;
  byId('viewer').hidden = true;
  byId('viewer-bar').hidden = entry === null;
  byId('zooming').hidden = true;
  byId('drawn-by').textContent = '';
  URL.revokeObjectURL(shownUrl);
  shownUrl = '';
  byId('shown').removeAttribute('src');
  veil('');
  if (!entry) return;
  const slow = setTimeout(() => {
    if (shownEntry === entry) veil('Drawing the picture …');
  }, 400);
  try {
    const picture = await drawn(entry.file, PREVIEW_SIDE, null);
    if (shownEntry !== entry) {
      URL.revokeObjectURL(picture.url);
      return;
    }
    place(entry, picture);
  } catch (error) {
    if (shownEntry === entry) veil(`No picture can be shown. ${reasonOf(error.code ?? 'truncated')[0]}`);
  } finally {
    clearTimeout(slow);
  }
}

function veil(text) {
  byId('veil').textContent = text;
  byId('veil').hidden = text === '';
}

function place(entry, {image, url, by}) {
  veil('');
  shownUrl = url;
  byId('shown').src = url;
  byId('shown').alt = `The picture ${entry.name}`;
  byId('viewer').hidden = false;
  byId('zooming').hidden = false;
  Object.assign(view, {width: image.naturalWidth, height: image.naturalHeight});
  const small = Math.max(view.width, view.height) === PREVIEW_SIDE ? `, ${whole(PREVIEW_SIDE)} pixels at most` : '';
  byId('drawn-by').textContent = by === 'server' ? `Preview made by the server${small}` : '';
  fit();
}

const stageSize = () => [byId('viewer').clientWidth, byId('viewer').clientHeight];

// Small pictures are enlarged too, though not without end.
function fitScale() {
  const [width, height] = stageSize();
  return Math.min(width / view.width, height / view.height, 8) || 1;
}

function fit() {
  view.fitted = true;
  view.scale = fitScale();
  move(0, 0);
}

function zoomTo(scale, atX = null, atY = null) {
  const [width, height] = stageSize();
  const [x, y] = [atX ?? width / 2, atY ?? height / 2];
  const least = Math.min(fitScale(), 1);
  const next = Math.min(Math.max(scale, least), Math.max(32, fitScale() * 8));
  const ratio = next / view.scale;
  view.x = x - (x - view.x) * ratio;
  view.y = y - (y - view.y) * ratio;
  view.scale = next;
  view.fitted = Math.abs(next / fitScale() - 1) < 1e-6;
  move(0, 0);
}

// Along one side: a picture that is larger than the stage covers it, a smaller one stands in its middle.
const held = (offset, size, stage) =>
  size <= stage ? (stage - size) / 2 : Math.min(0, Math.max(stage - size, offset));

function move(byX, byY) {
  const [width, height] = stageSize();
  view.x = held(view.x + byX, view.width * view.scale, width);
  view.y = held(view.y + byY, view.height * view.scale, height);
  const image = byId('shown');
  image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  image.classList.toggle('grainy', view.scale * devicePixelRatio >= 3);
  byId('viewer').classList.toggle('movable', isMovable());
  byId('zoom').textContent = `${Math.round(view.scale * 100)}${SPACE}%`;
}

function isMovable() {
  const [width, height] = stageSize();
  return view.width * view.scale > width + 1 || view.height * view.scale > height + 1;
}

function onViewerKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const far = 60;
  const moves = {ArrowLeft: [far, 0], ArrowRight: [-far, 0], ArrowUp: [0, far], ArrowDown: [0, -far]};
  if (moves[event.key] && isMovable()) move(...moves[event.key]);
  else if (['+', '='].includes(event.key)) zoomTo(view.scale * STEP);
  else if (['-', '_'].includes(event.key)) zoomTo(view.scale / STEP);
  else if (event.key === '0') fit();
  else if (event.key === '1') zoomTo(1);
  else return;
  event.preventDefault();
}

function onWheel(event) {
  // What can shrink no further lets the page scroll.
  if (event.deltaY > 0 && view.scale <= Math.min(fitScale(), 1) * 1.0001) return;
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 16 : 1;
  const pace = event.ctrlKey ? 0.01 : 0.0015;
  const box = byId('viewer').getBoundingClientRect();
  zoomTo(view.scale * Math.exp(-event.deltaY * lines * pace), event.clientX - box.left, event.clientY - box.top);
}

const fingers = new Map();

function onPointerMove(event) {
  const before = fingers.get(event.pointerId);
  if (!before) return;
  const now = {x: event.clientX, y: event.clientY};
  const other = [...fingers.entries()].find(([id]) => id !== event.pointerId)?.[1];
  fingers.set(event.pointerId, now);
  if (!other) {
    move(now.x - before.x, now.y - before.y);
    return;
  }
  const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y);
  const box = byId('viewer').getBoundingClientRect();
  move((now.x - before.x) / 2, (now.y - before.y) / 2);
  zoomTo(
    view.scale * (apart(now) / Math.max(apart(before), 1)),
    (now.x + other.x) / 2 - box.left,
    (now.y + other.y) / 2 - box.top,
  );
}

function watchViewer() {
  const viewer = byId('viewer');
  viewer.addEventListener('keydown', onViewerKey);
  viewer.addEventListener('wheel', onWheel, {passive: false});
  viewer.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    viewer.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, {x: event.clientX, y: event.clientY});
  });
  viewer.addEventListener('pointermove', onPointerMove);
  for (const end of ['pointerup', 'pointercancel', 'lostpointercapture']) {
    viewer.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
  viewer.addEventListener('dblclick', (event) => {
    const box = viewer.getBoundingClientRect();
    if (view.fitted) zoomTo(view.scale * 2.5, event.clientX - box.left, event.clientY - box.top);
    else fit();
  });
  new ResizeObserver(() => {
    if (viewer.hidden || !view.width) return;
    if (view.fitted) fit();
    else move(0, 0);
  }).observe(viewer);
  byId('zoom-in').onclick = () => zoomTo(view.scale * STEP);
  byId('zoom-out').onclick = () => zoomTo(view.scale / STEP);
  byId('zoom-fit').onclick = fit;
  byId('zoom-one').onclick = () => zoomTo(1);
}

// A small copy of a picture on a canvas, for the table.
async function thumbnail(file, canvas) {
  const {image, url} = await drawn(file, THUMB_SIDE, null);
  const share = Math.min(THUMB_SIDE / image.naturalWidth, THUMB_SIDE / image.naturalHeight);
  canvas.width = Math.max(1, Math.round(image.naturalWidth * share));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * share));
  const pen = canvas.getContext('2d');
  pen.imageSmoothingQuality = 'high';
  pen.imageSmoothingEnabled = share < 1;
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(url);
}
