"""The page that `fsar_jax/browser/app.py` serves: one file of HTML, CSS and JavaScript.

It loads nothing from elsewhere. What the server says is put in as text, except the answers, whose
HTML fsar_jax/analysis/recognition_page.py writes.
"""

from fsar_jax.analysis.html_page import document
from fsar_jax.analysis.recognition_page import HOW_TO_READ, STYLE

BROWSER_STYLE = """
.classes { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1rem; }
.class { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem;
  background: var(--paper); display: flex; flex-direction: column; gap: .5rem; }
.class footer { display: flex; align-items: center; gap: .75rem; margin-top: auto; }
.class .drop { flex: 1; padding: .4rem; }
.pictures { display: flex; flex-wrap: wrap; gap: .3rem; }
.pictures img { height: 3.2rem; border-radius: .2rem; }
.drop { display: block; border: 2px dashed var(--line); border-radius: .5rem; padding: .7rem;
  text-align: center; color: var(--soft); cursor: pointer; }
.drop.large { padding: 1.2rem; font-size: 1.1rem; }
.drop:hover, .drop:focus-within, .drop.over { border-color: var(--accent); color: var(--ink); }
.drop input { position: absolute; opacity: 0; width: 1px; height: 1px; }
.options { margin: .6rem 0 0; }
.options [type=number] { width: 4.5rem; }
button, [type=text], [type=number] { font: inherit; color: inherit; background: var(--paper);
  border: 1px solid var(--line); border-radius: .4rem; padding: .35rem .8rem; }
button { cursor: pointer; }
button:hover { border-color: var(--accent); }
.pictures button { border: 0; background: none; padding: 0; line-height: 0; }
.pictures button:hover, .pictures button:focus { outline: 2px solid var(--bad); }
button.plain { border: 0; background: none; padding: 0 .2rem; color: var(--soft); }
form { display: flex; gap: .5rem; margin: 0 0 1rem; flex-wrap: wrap; }
progress { width: 100%; }
#messages p { margin: .3rem 0; }
#expected { margin-bottom: 0; }
"""

BODY = """
<h1>Which class does a clip show?</h1>
<p>Give one or more short clips of each class, then a clip to recognise: each up to {megabytes} MB
and {seconds} seconds. Clips are read on the computer that runs this page, and are not kept.</p>
<div id="messages" role="alert"></div>
<section>
<h2>Examples</h2>
<form id="new-class"><input type="text" id="class-name" maxlength="80" placeholder="name of a class"
  aria-label="name of a new class"><button>Add class</button>
<button type="button" id="reset">Start again</button></form>
<div class="classes" id="classes"></div>
<p class="soft" id="expected"></p>
</section>
<section>
<h2>Recognise</h2>
<label class="drop large" id="query">Drop clips here, or choose files
<input type="file" id="query-file" multiple accept="video/*,.mkv,.avi,.gif"></label>
<p class="options"><label><input type="checkbox" id="long"> A long recording: show what it shows
when, in windows of</label> <input type="number" id="window" min="1" max="60" value="4"
aria-label="seconds of a window"> seconds</p>
<p class="options"><label>Answer "none of these" where the best class has less than
<input type="number" id="unknown" min="0" max="100" value="0"></label> %</p>
<div id="working"></div>
</section>
<div id="answers" aria-live="polite"></div>
"""

SCRIPT = """
const mostBytes = {megabytes} * 1e6;
const find = (id) => document.getElementById(id);
const named = new Set();          // classes that have no example yet
let known = [];                   // what the server last said
let queue = Promise.resolve();    // one upload at a time

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function complain(words) {
  find('messages').append(element('p', {className: 'bad', textContent: words}));
}

// Sends a request, and returns what the server says; throws its refusal.
function send(method, address, file, name) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    const bar = element('progress', {max: 1, value: 0});
    const line = element('p', {className: 'soft', textContent: name ? `sending ${name}` : ''}, bar);
    request.upload.onprogress = (e) => { bar.value = e.loaded / e.total; };
    request.upload.onload = () => {
      bar.removeAttribute('value');
      line.firstChild.textContent = `reading ${name}`;
    };
    request.onloadend = () => {
      line.remove();
      let said = null;
      try { said = JSON.parse(request.responseText); } catch { }
      if (request.status === 200 && said) done(said);
      else failed(new Error(said?.error ?? `the server gives no answer`));
    };
    if (file) find('working').append(line);
    request.open(method, address);
    request.send(file);
  });
}

// One after the other; a refusal is shown, and the next goes on.
function then(work) {
  queue = queue.then(work).catch((error) => complain(error.message));
  return queue;
}

function upload(files, address, use) {
  find('messages').replaceChildren();
  for (const file of files) {
    then(async () => {
      if (file.size > mostBytes)
        throw new Error(`${file.name} is larger than {megabytes} MB, which this server takes`);
      use(await send('POST', `${address}name=${encodeURIComponent(file.name)}`, file, file.name));
    });
  }
}

function takesFiles(drop, use) {
  const input = drop.querySelector('input');
  input.onchange = () => { use([...input.files]); input.value = ''; };
  drop.ondragover = (e) => { e.preventDefault(); drop.classList.add('over'); };
  drop.ondragleave = () => drop.classList.remove('over');
  drop.ondrop = (e) => {
    e.preventDefault();
    drop.classList.remove('over');
    use([...e.dataTransfer.files]);
  };
}

function card({name, count, examples}) {
  const address = `examples?class=${encodeURIComponent(name)}&`;
  const remove = element('button', {className: 'plain', type: 'button', textContent: 'remove'});
  remove.setAttribute('aria-label', `remove ${name}`);
  remove.onclick = () => {
    named.delete(name);
    if (!count) return show(known);
    then(async () => show(await send('POST', `remove?class=${encodeURIComponent(name)}`)));
  };
  const pictures = element('div', {className: 'pictures'}, ...examples.map((example, i) => {
    const button = element('button', {type: 'button', title: `${example.name}: click to remove`},
      element('img', {src: example.picture, alt: `remove ${example.name}`}));
    button.onclick = () => then(async () => show(
      await send('POST', `remove?class=${encodeURIComponent(name)}&example=${i}`)));
    return button;
  }));
  if (count > examples.length) pictures.append(`and ${count - examples.length} more`);
  const input = element('input', {type: 'file', multiple: true, accept: 'video/*,.mkv,.avi,.gif'});
  input.setAttribute('aria-label', `clips of ${name}`);
  const drop = element('label', {className: 'drop'}, 'Add clips', input);
  const made = element('div', {className: 'class'},
    element('b', {textContent: name}), pictures,
    element('footer', {}, drop,
      element('span', {className: 'soft', textContent: count === 1 ? '1 clip' : `${count} clips`}),
      remove));
  made.dataset.name = name;
  takesFiles(drop, (files) => upload(files, address, show));
  return made;
}

function show(said) {
  known = said;
  for (const {name} of said.classes) named.delete(name);
  const empty = [...named].map((name) => ({name, count: 0, examples: []}));
  find('classes').replaceChildren(...[...said.classes, ...empty].map(card));
  find('expected').textContent = said.classes.length < 2
    ? 'Give clips of at least two classes.' : said.expected;
}

function answered(said) {
  const made = element('section', {className: 'answered'},
    element('h2', {textContent: said.clip}));
  made.insertAdjacentHTML('beforeend', said.html);
  find('answers').prepend(made);
  made.scrollIntoView({block: 'nearest'});
}

find('new-class').onsubmit = (e) => {
  e.preventDefault();
  const name = find('class-name').value.trim().replace(/\\s+/g, ' ');
  find('class-name').value = '';
  if (name) { named.add(name); show(known); }
};
find('reset').onclick = () => {
  named.clear();
  find('answers').replaceChildren();
  find('messages').replaceChildren();
  then(async () => show(await send('POST', 'reset')));
};
takesFiles(find('query'), (files) => {
  const unknown = find('unknown').value / 100;
  upload(files, `answer?${unknown ? `unknown_below=${unknown}&` : ''}${
    find('long').checked ? `window=${find('window').value}&` : ''}`, answered);
});
// A clip that is dropped beside must not replace the page.
for (const kind of ['dragover', 'drop']) addEventListener(kind, (e) => e.preventDefault());
then(async () => show(await send('GET', 'examples')));
"""


def browser_page(megabytes: float, seconds: float, nonce: str) -> str:
    """The page, as HTML.

    Args:
      megabytes, seconds: that a clip may have.
      nonce: by which the browser knows the script for ours.
    """
    script = SCRIPT.replace('{megabytes}', f'{megabytes:g}')
    body = BODY.replace('{megabytes}', f'{megabytes:g}').replace('{seconds}', f'{seconds:g}')
    return document(
        'Recognise clips',
        [body, HOW_TO_READ, f'<script nonce="{nonce}">{script}</script>'],
        STYLE + BROWSER_STYLE,
    )
