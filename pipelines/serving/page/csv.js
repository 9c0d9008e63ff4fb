// The answers as a table for a spreadsheet (RFC 4180), made here: file names stay in this browser.

// A spreadsheet would take such a text for a formula.
const isFormula = (text) => /^[\s]*[=+\-@\uff0b\uff0d\uff1d\uff20]/.test(text) || /^[\t\r\n]/.test(text);

function cell(value) {
  if (value === null || value === undefined) return '';
  if (typeof value === 'number') return String(value);
  const text = isFormula(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csvText(all) {
  const classes = [...new Set(all.flatMap((entry) => Object.keys(entry.answer?.probabilities ?? {})))];
  const header = [
    'file',
    'status',
    'decision',
    'predicted_label',
    'p_positive',
    ...classes.map((name) => `p of ${name}`),
    'error_code',
    'bytes',
    'width',
    'height',
    'content_sha256',
    'model',
    'version',
    'model_id',
    'request_id',
  ];
  const rows = all.map((entry) => {
    const answer = entry.answer ?? {};
    return [
      entry.name,
      entry.state,
      answer.decision,
      answer.predicted_label,
      answer.p_positive,
      ...classes.map((name) => answer.probabilities?.[name]),
      entry.problem?.code,
      entry.file.size,
      answer.width,
      answer.height,
      answer.content_sha256,
      answer.model?.name,
      answer.model?.version,
      answer.model?.model_id,
      answer.request_id ?? entry.problem?.requestId,
    ];
  });
  return [header, ...rows].map((row) => `${row.map(cell).join(',')}\r\n`).join('');
}

function saveCsv(all) {
  // The mark in front tells spreadsheets that it is UTF-8.
  const url = URL.createObjectURL(new Blob(['\ufeff', csvText(all)], {type: 'text/csv;charset=utf-8'}));
  const link = make('a', {href: url, download: 'nightread-answers.csv'});
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
  say('The table was saved as CSV.');
}
