// The script of viewer.html. Gradio runs it once, as a function body: `element` is the HTML, `props` are the arguments
// of gr.HTML in page.py, `trigger` sends a request to Python, whose answer becomes `props.value`, and `upload` sends a
// file. Blending, switching classes and hovering happen here, without the server.

const find = (selector) => element.querySelector(selector);
const make = (tag, attributes = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children); // strings become text, never HTML
  return node;
};
const { models, examples, limits } = props; // see make_blocks in page.py
// Of the colour map for attention and similarity: inferno, from dark to bright.
const HEAT = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
const encoders = models.filter((model) => model.layers);
const layers = Math.min(...encoders.map((model) => model.layers));
const heads = Math.min(...encoders.map((model) => model.heads));

let number = 0; // of the last request; answers to earlier ones come too late
let result = null; // the last answer of kind 'result'
let view = 'classes';
let point = null; // that was clicked: x and y, 0 to 1
let panes = [];

// ---- requests ----

function say(text, kind = '') {
  find('.status').className = 'status ' + kind;
  find('.status').textContent = text;
}

async function open(file) {
  if (file.size > limits.megabytes * 1e6)
    return say(`${file.name} has ${(file.size / 1e6).toFixed(0)} MB; at most ${limits.megabytes} MB are accepted.`, 'error');
  const own = ++number;
  say(`Uploading ${file.name}`, 'busy');
  try {
    // A random name: Gradio stores equal files of equal names once, and the first reader removes them.
    const random = Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(16)).join('');
    const { path } = await upload(new File([file], random));
    if (own === number) request('segment', { path, name: file.name }, `Segmenting ${file.name}`);
  } catch (error) {
    say(`${file.name} could not be uploaded: ${error?.message ?? error}`, 'error');
  }
}

function request(event, data, text) {
  say(text, 'busy');
  trigger(event, { ...data, number: ++number });
}

function look() {
  if (view === 'classes' || !result || !point) return;
  const layer = Number(find('.layer').value), head = Number(find('.head').value);
  request('look', { token: result.token, view, ...point, layer, head }, view === 'attention' ? 'Computing attention' : 'Comparing features');
}

watch('value', () => {
  const answer = props.value;
  if (!answer || answer.number !== number) return;
  if (answer.kind === 'error') say(answer.message, 'error');
  else if (answer.kind === 'result') show(answer);
  else {
    answer.maps.forEach((map, i) => showHeat(panes[i], map));
    say(summary());
  }
});

// ---- the result ----

const summary = () => `${result.name} · ${result.size[1]} × ${result.size[0]} · ${result.seconds} s`;

async function show(answer) {
  const own = answer.number, base = `results/${answer.token}/`;
  let pixels;
  try {
    pixels = await Promise.all(models.map(async (_, i) => {
      const response = await fetch(`${base}${i}/pixels`);
      if (!response.ok) throw new Error(await response.text());
      return response.arrayBuffer();
    }));
  } catch (error) {
    return say(`The result could not be loaded: ${error.message}`, 'error');
  }
  if (own !== number) return;
  [result, point] = [answer, null];
  panes = models.map((model, i) => makePane(model, i, pixels[i], base));
  find('.panes').replaceChildren(...panes.map((pane) => pane.node));
  find('.welcome').hidden = true;
  find('.controls').hidden = false;
  layOut();
  setView(view);
  say(summary());
}

function makePane(model, index, buffer, base) {
  const [height, width] = result.shown, count = height * width;
  const canvas = make('canvas', { className: 'labels', width, height });
  const heat = make('canvas', { className: 'heat', hidden: true });
  const patch = make('div', { className: 'patch', hidden: true });
  const picture = make('img', { src: `${base}picture`, alt: result.name, draggable: false });
  const box = make('div', { className: 'view' }, picture, canvas, heat, patch);
  const legend = make('div', { className: 'legend' });
  const pane = {
    model, index, base, canvas, heat, patch, box, width, height, hidden: new Set(), rows: new Map(),
    labels: new Uint16Array(buffer, 0, count), confidence: new Uint8Array(buffer, 2 * count, count),
  };
  const all = (shown) => () => {
    pane.hidden = new Set(shown ? [] : pane.rows.keys());
    pane.rows.forEach((row) => { row.firstChild.checked = shown; });
    paint(pane);
  };
  pane.scale = make('div', { className: 'scale', hidden: true });
  legend.append(make('div', { className: 'all' }, 'Classes in the image', make('span', {},
    make('button', { type: 'button', textContent: 'all', onclick: all(true) }),
    make('button', { type: 'button', textContent: 'none', onclick: all(false) }))));
  for (const [label, share] of result.shares[index]) {
    const box = make('input', { type: 'checkbox', checked: true });
    box.onchange = () => panes.forEach((one) => setShown(one, model.classes[label], box.checked));
    const swatch = make('i');
    swatch.style.background = `rgb(${model.palette[label]})`;
    const percent = share < 0.001 ? '< 0.1 %' : `${(share * 100).toFixed(1)} %`;
    const row = make('label', { title: model.classes[label] }, box, swatch, make('b', { textContent: model.classes[label] }), make('span', { textContent: percent }));
    pane.rows.set(label, row);
    legend.append(row);
  }
  pane.links = [['mask', 'Palette PNG'], ['labels', 'Class numbers'], ['overlay', 'Overlay']].map(([kind, text]) =>
    make('a', { textContent: text, download: fileName(index, kind), onclick: () => { setLinks(pane); } }));
  pane.node = make('section', { className: 'pane' },
    ...(models.length > 1 ? [make('h2', { textContent: model.name, title: model.name })] : []),
    box, make('div', { className: 'side' }, pane.scale, legend), make('div', { className: 'files' }, 'Download', ...pane.links));
  box.onpointermove = (event) => hover(pane, event);
  box.onpointerleave = () => { find('.tip').hidden = true; panes.forEach((one) => mark(one, -1)); };
  box.onclick = (event) => click(pane, event);
  setLinks(pane);
  paint(pane);
  return pane;
}

function setShown(pane, name, shown) { // a class that two models share is switched in both
  const label = pane.model.classes.indexOf(name), row = pane.rows.get(label);
  if (!row) return;
  row.firstChild.checked = shown;
  pane.hidden[shown ? 'delete' : 'add'](label);
  paint(pane);
}

const fileName = (index, kind) =>
  `${result.name.replace(/\.[^.]*$/, '')}_${models.length > 1 ? models[index].name + '_' : ''}${kind}.png`;

function setLinks(pane) {
  const query = `?opacity=${find('.opacity').value / 100}&hidden=${[...pane.hidden].join()}`;
  ['mask', 'labels', `overlay${query}`].forEach((path, i) => { pane.links[i].href = `${pane.base}${pane.index}/${path}`; });
}

function paint(pane) {
  const colours = new Uint32Array(pane.model.palette.length), bytes = new Uint8Array(colours.buffer);
  pane.model.palette.forEach((rgb, label) => bytes.set([...rgb, pane.hidden.has(label) ? 0 : 255], 4 * label));
  const image = new ImageData(pane.width, pane.height), out = new Uint32Array(image.data.buffer);
  for (let i = 0; i < out.length; i++) out[i] = colours[pane.labels[i]];
  pane.canvas.getContext('2d').putImageData(image, 0, 0);
}

function heatColour(value) { // 0 to 255
  const at = (value / 255) * (HEAT.length - 1), low = Math.min(Math.floor(at), HEAT.length - 2);
  return HEAT[low].map((channel, i) => Math.round(channel + (at - low) * (HEAT[low + 1][i] - channel)));
}

function showHeat(pane, map) {
  pane.map = map;
  if (!map) return;
  const [rows, columns] = map.grid, [left, top, width, height] = map.area;
  Object.assign(pane.heat, { width: columns, height: rows });
  place(pane.heat, [left, top, width, height]);
  place(pane.patch, map.patch);
  const image = new ImageData(columns, rows);
  map.values.forEach((value, i) => image.data.set([...heatColour(value), 255], 4 * i));
  pane.heat.getContext('2d').putImageData(image, 0, 0);
  const bar = make('div');
  bar.style.background = `linear-gradient(to right, ${HEAT.map((rgb) => `rgb(${rgb})`).join()})`;
  const text = (value) => (view === 'attention' ? `${(100 * value).toPrecision(2)} %` : value.toFixed(2));
  pane.scale.replaceChildren(text(map.low), bar, text(map.high));
  setVisible(pane);
}

function place(node, [left, top, width, height]) {
  Object.entries({ left, top, width, height }).forEach(([key, value]) => { node.style[key] = `${100 * value}%`; });
}

// ---- what is shown ----

function setVisible(pane) {
  const hot = view !== 'classes' && point !== null && Boolean(pane.map);
  pane.canvas.hidden = view !== 'classes';
  for (const node of [pane.heat, pane.patch, pane.scale]) node.hidden = !hot;
}

function setView(name) {
  if (name !== view) panes.forEach((pane) => { pane.map = null; });
  view = name;
  element.querySelectorAll('.views button').forEach((button) => {
    button.role = 'radio';
    button.ariaChecked = String(button.dataset.view === view);
  });
  element.querySelectorAll('.inside').forEach((node) => { node.hidden = view === 'classes'; });
  find('.heads').hidden = view !== 'attention';
  find('.hint').hidden = view === 'classes' || point !== null;
  panes.forEach(setVisible);
  look();
}

function setOpacity() {
  const value = find('.opacity').value;
  find('.opacity-value').textContent = `${value} %`;
  panes.forEach((pane) => { pane.canvas.style.opacity = pane.heat.style.opacity = value / 100; setLinks(pane); });
}

function layOut() { // the largest size at which a whole image fits into the window
  const two = panes.length > 1;
  find('.panes').classList.toggle('two', two);
  if (!panes.length) return;
  const { width, height } = panes[0], free = find('main').clientWidth - 32;
  const room = two ? (free - 16) / 2 : free - 248;
  const tall = window.innerHeight - (two ? 250 : 110);
  const scale = Math.min(room / width, Math.max(tall, 240) / height);
  panes.forEach((pane) => Object.assign(pane.box.style, { width: `${width * scale}px`, height: `${height * scale}px` }));
  setOpacity();
}

// ---- the pointer ----

function at(pane, event) {
  const box = pane.box.getBoundingClientRect();
  const within = (value) => Math.min(Math.max(value, 0), 1);
  return { x: within((event.clientX - box.left) / box.width), y: within((event.clientY - box.top) / box.height) };
}

function hover(pane, event) {
  const { x, y } = at(pane, event), tip = find('.tip');
  const index = (one) => Math.min(Math.floor(y * one.height), one.height - 1) * one.width + Math.min(Math.floor(x * one.width), one.width - 1);
  panes.forEach((one) => mark(one, one.labels[index(one)]));
  const label = pane.labels[index(pane)], swatch = make('i');
  swatch.style.background = `rgb(${pane.model.palette[label]})`;
  tip.replaceChildren(swatch, `${pane.model.classes[label]} · ${Math.round(pane.confidence[index(pane)] / 2.55)} %`);
  tip.hidden = false;
  tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 4)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 4)}px`;
}

function mark(pane, label) {
  pane.rows.forEach((row, key) => row.classList.toggle('under', key === label));
}

function click(pane, event) {
  if (!encoders.length) return;
  point = at(pane, event);
  if (view === 'classes') setView('attention');
  else {
    find('.hint').hidden = true;
    look();
  }
}

// ---- controls ----

find('.limits').textContent = `up to ${limits.megabytes} MB, ${limits.megapixels} megapixels`;
examples.forEach((name, i) => {
  const button = make('button', { type: 'button', title: name }, make('img', { src: `examples/${i}`, alt: name }));
  button.onclick = () => request('segment', { example: i }, `Segmenting ${name}`);
  find('.examples').append(button);
});
element.querySelectorAll('.views button').forEach((button) => { button.onclick = () => setView(button.dataset.view); });
find('.views').hidden = !encoders.length;
if (encoders.length) {
  const setLayer = () => { find('.layer-value').textContent = find('.layer').value; };
  Object.assign(find('.layer'), { max: layers - 1, value: layers - 1, oninput: setLayer, onchange: look });
  setLayer();
  find('.head').append(make('option', { value: -1, textContent: 'mean of all' }),
    ...Array.from({ length: heads }, (_, i) => make('option', { value: i, textContent: i })));
  find('.head').onchange = look;
}
find('.opacity').oninput = setOpacity;
find('.drop input').onchange = (event) => { const [file] = event.target.files; event.target.value = ''; if (file) open(file); };
find('.drop').onkeydown = (event) => { if (event.key === 'Enter' || event.key === ' ') find('.drop input').click(); };
window.addEventListener('resize', layOut);
window.addEventListener('dragover', (event) => { event.preventDefault(); find('.page').classList.add('dragging'); });
window.addEventListener('dragleave', (event) => { if (!event.relatedTarget) find('.page').classList.remove('dragging'); });
window.addEventListener('drop', (event) => {
  event.preventDefault();
  find('.page').classList.remove('dragging');
  const [file] = event.dataTransfer.files;
  if (file) open(file);
});
window.addEventListener('paste', (event) => { const [file] = event.clipboardData.files; if (file) open(file); });
setOpacity();
setView('classes');
say('');
