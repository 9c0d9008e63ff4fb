// Choosing, dropping and pasting; which picture is shown.

function select(entry) {
  for (const one of entries) {
    one.row.classList.toggle('current', one === entry);
    if (one === entry) one.button.setAttribute('aria-current', 'true');
    else one.button.removeAttribute('aria-current');
  }
  byId('file-name').textContent = entry?.name ?? '';
  byId('file-name').title = entry?.name ?? '';
  if (entry !== shownEntry || entry === null) showPicture(entry);
  showAnswer(entry);
  showPlace();
  if (entry && inWords(entry)) say(`${entry.name}: ${inWords(entry)}`);
}

function showPlace() {
  const place = entries.indexOf(shownEntry);
  byId('turning').hidden = entries.length < 2;
  byId('place').textContent = `${place + 1} of ${entries.length}`;
  byId('earlier').disabled = place <= 0;
  byId('later').disabled = place >= entries.length - 1;
}

function turn(by) {
  const next = entries[entries.indexOf(shownEntry) + by];
  if (next) select(next);
}

function remove() {
  const place = entries.indexOf(shownEntry);
  removeEntries([shownEntry]);
  select(entries[Math.min(place, entries.length - 1)] ?? null);
  (entries.length ? byId('remove') : byId('choose')).focus();
}

function removeAll() {
  removeEntries([...entries]);
  select(null);
  byId('choose').focus();
}

function take(files) {
  if (files.length) addFiles([...files]);
}

const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files');

function watchDrops() {
  let depth = 0;
  const over = (is) => document.body.classList.toggle('dropping', is);
  addEventListener('dragenter', (event) => {
    if (!holdsFiles(event)) return;
    depth += 1;
    over(true);
  });
  addEventListener('dragleave', (event) => {
    if (!holdsFiles(event)) return;
    depth = Math.max(0, depth - 1);
    over(depth > 0);
  });
  addEventListener('dragover', (event) => {
    if (holdsFiles(event)) event.preventDefault();
  });
  addEventListener('drop', (event) => {
    depth = 0;
    over(false);
    if (!holdsFiles(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
}

function watch() {
  const chooser = byId('chooser');
  for (const id of ['choose', 'choose-too']) byId(id).onclick = () => chooser.click();
  chooser.onchange = () => {
    const files = [...chooser.files];
    // So that the same file can be chosen again.
    chooser.value = '';
    take(files);
  };
  addEventListener('paste', (event) => {
    if (byId('token-dialog').open || !event.clipboardData?.files.length) return;
    event.preventDefault();
    take(event.clipboardData.files);
  });
  watchDrops();
  watchViewer();
  byId('earlier').onclick = () => turn(-1);
  byId('later').onclick = () => turn(1);
  byId('remove').onclick = remove;
  byId('remove-all').onclick = removeAll;
  byId('cancel').onclick = cancelOrGoOn;
  byId('csv').onclick = () => saveCsv(entries);
  byId('token-form').addEventListener('submit', takeToken);
  byId('token-later').onclick = () => byId('token-dialog').close();
  byId('token-dialog').addEventListener('close', tokenLater);
}

watch();
drawColumns();
showAnswer(null);
loadModel().then(
  () => {
    for (const entry of entries) changed(entry, false);
  },
  (error) => {
    byId('model-line').textContent = `The server does not tell this page of its model. ${error.detail ?? ''}`;
  },
);
