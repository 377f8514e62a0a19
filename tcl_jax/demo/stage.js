// The stage: draws the photo and its masks, lists the words, and says what is at a point.
// Runs when the component `element` is there; `props.value` is what page.py makes, or null.
// The state starts as the sliders do and then follows them alone, not what an answer brings.

const { opacity, background, thresholds } = props;
const state = { opacity, background, thresholds: { ...thresholds }, focus: null };
let content = null;
let panels = [];
let loading = 0;
let drawing = false;

const make = (tag, className, parent) => {
  const node = document.createElement(tag);
  node.className = className;
  parent?.append(node);
  return node;
};

const inside = (place, size) => Math.min(Math.max(place, 0), size - 1);

const allNames = () => [...content.names, "background"];

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function load(value) {
  const turn = ++loading;
  const photo = new Image();
  let masks = [];
  if (value) {
    photo.src = value.photo;
    masks = await Promise.all(value.panels.map((panel) => inflate(panel.masks)));
    await photo.decode();
  }
  if (turn !== loading) return;
  content = value;
  state.focus = null;
  const stage = element.querySelector(".stage");
  stage.replaceChildren();
  stage.classList.toggle("side-by-side", Boolean(value) && value.panels.length > 1);
  panels = [];
  if (!value) {
    const hint = make("p", "hint", stage);
    hint.textContent = "Drop a photo and type what to look for, or click an example.";
    return;
  }
  if (value.panels.length) panels = value.panels.map((panel, i) => build(panel, masks[i], photo));
  else build(null, null, photo);
  draw();
}

function build(panel, masks, photo) {
  const { width, height } = content;
  const figure = make("figure", "panel", element.querySelector(".stage"));
  if (content.panels.length > 1) make("h3", "title", figure).textContent = panel.title;
  const frame = make("div", "frame", figure);
  const canvas = make("canvas", "picture", frame);
  Object.assign(canvas, { width, height });
  figure.style.setProperty("--ratio", width / height);
  canvas.setAttribute("role", "img");
  if (Math.max(width, height) < 200) canvas.classList.add("tiny");
  const context = canvas.getContext("2d");
  context.drawImage(photo, 0, 0, width, height);
  if (!panel) {
    canvas.setAttribute("aria-label", "The photo, without masks");
    return null;
  }
  const size = width * height;
  const tint = document.createElement("canvas");
  Object.assign(tint, { width, height });
  const built = {
    panel, canvas, context, photo, tint,
    scores: new Uint16Array(masks, 0, size),
    words: new Uint8Array(masks, 2 * size),
    pixels: new ImageData(width, height),
    reading: make("div", "reading", frame),
    point: null,
  };
  built.reading.setAttribute("role", "status");
  canvas.tabIndex = 0;
  const legend = make("ul", "legend", figure);
  built.chips = allNames().map((name, i) => chip(legend, name, i));
  listen(built);
  return built;
}

function chip(legend, name, index) {
  const item = make("li", "", legend);
  const button = make("button", "chip", item);
  button.type = "button";
  button.title = "Show this alone";
  const swatch = make("span", "swatch", button);
  const color = content.colors[index];
  if (color) swatch.style.background = color;
  else swatch.classList.add("none");
  make("span", "word", button).textContent = name;
  const share = make("span", "share", button);
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    state.focus = state.focus === index ? null : index;
    draw();
  });
  return { item, button, share };
}

// Whether a pixel's best word, whose score is in thousandths, is above the background's.
const level = (built) =>
  state.background ? Math.round(1000 * state.thresholds[built.panel.method]) : -1;

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    panels.forEach(paint);
  });
}

function paint(built) {
  const { words, scores, pixels, canvas, context } = built;
  const none = content.names.length;
  const limit = level(built);
  const table = new Uint32Array(none + 1);
  content.colors.forEach((color, i) => {
    const [r, g, b] = [1, 3, 5].map((k) => parseInt(color.slice(k, k + 2), 16));
    const faint = state.focus === null || state.focus === i ? 1 : 0.12;
    const alpha = Math.round(255 * state.opacity * faint);
    table[i] = ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
  const target = new Uint32Array(pixels.data.buffer);
  const counts = new Array(none + 1).fill(0);
  for (let i = 0; i < words.length; i++) {
    const label = scores[i] > limit ? words[i] : none;
    counts[label]++;
    target[i] = table[label];
  }
  built.tint.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(built.photo, 0, 0, canvas.width, canvas.height);
  context.drawImage(built.tint, 0, 0);
  const shares = counts.map((count) => `${(100 * (count / words.length)).toFixed(1)} %`);
  built.chips.forEach(({ item, button, share }, i) => {
    share.textContent = shares[i];
    button.classList.toggle("absent", !counts[i]);
    button.setAttribute("aria-pressed", String(state.focus === i));
    item.hidden = i === none && !state.background;
  });
  const found = allNames().map((name, i) => `${name} ${shares[i]}`).filter((_, i) => counts[i]);
  canvas.setAttribute("aria-label", `${built.panel.title}: ${found.join(", ")}`);
  if (built.point) read(built);
}

function listen(built) {
  const { canvas } = built;
  const move = (x, y) => {
    built.point = [inside(x, canvas.width), inside(y, canvas.height)];
    read(built);
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    move(
      Math.floor(((event.clientX - box.left) / box.width) * canvas.width),
      Math.floor(((event.clientY - box.top) / box.height) * canvas.height),
    );
  };
  const leave = () => {
    built.point = null;
    built.reading.classList.remove("shown");
  };
  canvas.addEventListener("pointermove", at);
  canvas.addEventListener("pointerdown", at);
  canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
  canvas.addEventListener("blur", leave);
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Escape") leave();
    if (!(event.key in moves)) return;
    event.preventDefault();
    const step = Math.max(Math.round(Math.max(canvas.width, canvas.height) / 50), 1);
    const [x, y] = built.point ?? [canvas.width >> 1, canvas.height >> 1];
    const [dx, dy] = moves[event.key];
    move(x + step * dx, y + step * dy);
  });
}

function read(built) {
  const { canvas, reading, point, words, scores } = built;
  const [x, y] = point;
  const i = y * canvas.width + x;
  const name = content.names[words[i]];
  const sure = `${Math.round(scores[i] / 10)} %`;
  reading.replaceChildren();
  const swatch = make("span", "swatch", reading);
  if (scores[i] > level(built)) {
    swatch.style.background = content.colors[words[i]];
    make("strong", "", reading).textContent = name;
    make("span", "sure", reading).textContent = sure;
  } else {
    swatch.classList.add("none");
    make("strong", "", reading).textContent = "background";
    make("span", "sure", reading).textContent = `${name} has ${sure}`;
  }
  reading.style.left = `${(100 * (x + 0.5)) / canvas.width}%`;
  reading.style.top = `${(100 * (y + 0.5)) / canvas.height}%`;
  reading.classList.toggle("left", x > canvas.width / 2);
  reading.classList.toggle("above", y > canvas.height / 2);
  reading.classList.add("shown");
}

window.tclStage = {
  set(changes) {
    const { threshold, ...others } = changes;
    Object.assign(state, others);
    Object.assign(state.thresholds, threshold);
    draw();
  },
};
watch("value", () => load(props.value));
load(props.value);
