// Runs once, when the picture card is on the page. The picture stays in this variable of the visitor's own browser and goes
// into the body of the request that asks about it; nothing is uploaded as a file. `element`, `props`: from Gradio's HTML component.
const $ = (id) => document.getElementById(id);
const lesion = { picture: null, at: -1 };
window.lesion = lesion;

element.querySelector('.pick').classList.toggle('touch', navigator.maxTouchPoints > 0);      // then the system offers its camera

// What Gradio's fields lack: a name for each group of buttons, and the number keyboard of a phone. Gradio also gives every
// button of a group a name of its own, and a new one at each change, so that the arrow keys do nothing and Tab stops at each.
function group(fieldset, i) {
  fieldset.setAttribute('aria-label', fieldset.querySelector('[data-testid=block-info]')?.textContent.trim() ?? '');
  const unite = () => { for (const r of fieldset.querySelectorAll('input[type=radio]')) if (r.name !== `group-${i}`) r.name = `group-${i}`; };
  unite();
  new MutationObserver(unite).observe(fieldset, { subtree: true, attributeFilter: ['name'] });
}

function dress(tries) {
  const groups = document.querySelectorAll('#fields fieldset'), boxes = document.querySelectorAll('#fields .numeric input, #fields .numeric textarea'), lists = document.querySelectorAll('#fields [role=combobox]');
  if (tries && groups.length + boxes.length + lists.length < props.columns.length) return setTimeout(() => dress(tries - 1), 100);
  groups.forEach(group);
  for (const b of boxes) b.inputMode = 'decimal';
  lesion.dressed = true;
}
dress(50);

const say = (text) => { $('note').textContent = text; $('problem').textContent = ''; };
const complain = (text) => { $('note').textContent = ''; $('problem').textContent = text; };
const stale = (yes) => document.querySelector('.outcome')?.classList.toggle('stale', yes);

function show(url, name) {
  const img = $('preview');
  img.onerror = () => { img.hidden = true; $('picture-name').textContent = `${name} (this browser cannot show it; the model may still read it)`; };
  img.onload = () => URL.revokeObjectURL(url);
  img.src = url; img.hidden = false;
  img.alt = 'The picture you chose';
  $('picture-name').textContent = name;
  element.querySelector('.drop').classList.add('full');
}

function take(file) {
  if (!file) return;
  if (file.size > props.max_bytes) return complain(`This file has ${(file.size/1e6).toFixed(1)} MB; the limit is ${props.max_bytes/1e6} MB. Choose a smaller one.`);
  const reader = new FileReader();
  reader.onerror = () => complain('The browser could not read this file.');
  reader.onload = () => {
    lesion.picture = reader.result;
    show(URL.createObjectURL(file), file.name);
    say('The picture is ready. Fill in what is known, or ask the model right away.');
    stale(true);
  };
  reader.readAsDataURL(file);
}

for (const input of element.querySelectorAll('input[type=file]'))
  input.addEventListener('change', () => { take(input.files[0]); input.value = ''; });

const drop = element.querySelector('.drop');
for (const kind of ['dragover', 'dragleave', 'drop'])
  drop.addEventListener(kind, (e) => { e.preventDefault(); drop.classList.toggle('over', kind === 'dragover'); if (kind === 'drop') take(e.dataTransfer.files[0]); });

// What Gradio's events call: each gets or gives the values of the fields, in their order.
const values = (known) => props.columns.map((c) => known[c] ?? '');

lesion.ask = (rest) => {
  $('problem').textContent = ''; $('note').textContent = 'Looking at the picture …';
  fetch('gradio_api/queue/status', { cache: 'no-store' }).catch(lesion.failed);      // is anyone there?
  return [lesion.picture, ...rest];
};

lesion.example = () => {
  lesion.at = (lesion.at + 1) % props.examples.length;
  const e = props.examples[lesion.at];
  lesion.picture = e.picture;
  show(e.picture, e.text);
  say(`Example ${lesion.at + 1} of ${props.examples.length} is ready. Now ask the model.`);
  stale(true);
  const v = values(e.known);
  return v.length === 1 ? v[0] : v;
};

lesion.clear = () => {
  lesion.picture = null;
  $('preview').hidden = true; $('preview').removeAttribute('src'); $('picture-name').textContent = '';
  drop.classList.remove('full');
  say('All is cleared.');
  return [...values({}), props.waiting, ''];
};

lesion.done = (message) => {
  if (message.startsWith('error ')) return complain(message.slice(6));
  say(message.slice(3));
  setTimeout(() => { const h = $('outcome-title'); if (h) { h.focus({ preventScroll: true }); h.scrollIntoView({ block: 'nearest' }); if (innerWidth < 768) h.scrollIntoView(); } }, 60);
};
lesion.failed = () => complain('The server gave no answer. Is it still running? If many are asking at once, wait a moment and try again.');
