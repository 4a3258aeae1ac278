// The page: filters, a grid that holds only the cards in view, and the large view. Names are set as text, never as HTML.
const SVG = "http://www.w3.org/2000/svg", PIXEL = 10, GAP = 12, CARD = 230, CAPTION = 62, SPARE_ROWS = 2;
const data = JSON.parse(document.getElementById("data").textContent);
const {images, detections, objects} = data;
const at = (id) => document.getElementById(id);
const state = {filter: null, shown: null, kinds: new Set(), cards: new Map(), current: 0, open: -1};
const hidden = {objects: false, detections: false};

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const className = (label) => data.classes[label] ?? String(label);
const color = (label) => data.colors[label] ?? "#808080";
const isDark = data.colors.map((text) => {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16));
  return 0.3 * red + 0.59 * green + 0.11 * blue < 90;
});
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

// The boxes of an image: objects first, then detections from the threshold up, the best last and so on top.
function boxesOf(image) {
  const filter = state.filter, list = [], firstObject = objects.first[image];
  const wanted = (kind) => !filter.kinds.size || filter.kinds.has(kind);
  const about = new Map();
  for (let n = firstObject; n < objects.first[image + 1]; n++) {
    const isMissed = !objects.crowd[n] && objects.seen[n] < filter.score;
    const entry = {isObject: true, class: objects.class[n], box: objects.box.slice(4 * n, 4 * n + 4)};
    entry.kind = isMissed ? MISSED : objects.crowd[n] ? IGNORED : -1;
    entry.fits = isMissed && wanted(MISSED) && fitsMissed(data, filter, n);
    about.set(n, entry);
    list.push(entry);
  }
  const found = [];
  for (let n = detections.first[image]; n < detections.first[image + 1]; n++) {
    if (detections.score[n] < filter.score) break;
    const entry = {isObject: false, class: detections.class[n], box: detections.box.slice(4 * n, 4 * n + 4)};
    entry.kind = detections.kind[n];
    entry.score = detections.score[n] / SCORE;
    entry.iou = detections.iou[n] / IOU;
    entry.fits = wanted(entry.kind) && fitsDetection(data, filter, n, firstObject);
    if (detections.about[n] >= 0) entry.object = about.get(firstObject + detections.about[n]);
    if (entry.fits && entry.object) entry.object.fits = true;
    found.push(entry);
  }
  return list.concat(found.reverse());
}

const isError = (entry) => entry.kind > CORRECT && entry.kind !== IGNORED;

// What a box is, in words.
function describe(entry) {
  if (entry.isObject) {
    const kind = entry.kind === MISSED ? "missed" : entry.kind === IGNORED ? "crowd" : "object";
    return {name: className(entry.class), kind, figures: ""};
  }
  const wrong = entry.object && entry.object.class !== entry.class;
  const name = className(entry.class) + (wrong ? `, on ${className(entry.object.class)}` : "");
  return {name, kind: data.kinds[entry.kind], figures: `${entry.score.toFixed(2)}, IoU ${entry.iou.toFixed(2)}`};
}

// Draws boxes into an svg over a picture: each twice, black or white and then in its colour, to be seen on any ground.
function drawBoxes(svg, image, list, withLabels) {
  const width = images.width[image], height = images.height[image];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const scale = withLabels ? width / (svg.getBoundingClientRect().width || width) : 1;
  for (const entry of list) {
    if (hidden[entry.isObject ? "objects" : "detections"] && withLabels) continue;
    const [x, y, w, h] = entry.box.map((value) => value / PIXEL);
    const kinds = [entry.isObject ? "object" : "detection", isError(entry) ? "error" : "", entry.fits ? "" : "pale"];
    const group = shape("g", {class: kinds.join(" ")});
    for (const kind of ["below", "line"]) {
      const rect = shape("rect", {x, y, width: w, height: h, class: kind});
      rect.style.stroke = kind === "line" ? color(entry.class) : isDark[entry.class] ? "#fff" : "#000";
      group.append(rect);
    }
    if (withLabels && entry.fits && (!entry.isObject || isError(entry))) group.append(label(entry, x, y, h, scale, width, height));
    entry.group = group;
    svg.append(group);
  }
}

function label(entry, x, y, h, scale, width, height) {
  const words = describe(entry), size = 12 * scale;
  const isAbove = entry.isObject ? y + h + size * 1.3 > height : y > size * 1.3;
  const text = shape("text", {"font-size": size, "stroke-width": size / 4, y: isAbove ? y - size * 0.35 : y + h + size});
  const score = entry.isObject ? "" : entry.score.toFixed(2);
  text.textContent = [words.name, score, isError(entry) ? words.kind : ""].filter(Boolean).join(" ");
  const isRight = x > width * 0.7;
  text.setAttribute("x", isRight ? Math.min(x + entry.box[2] / PIXEL, width) : Math.max(x, 0));
  if (isRight) text.setAttribute("text-anchor", "end");
  if (!entry.isObject && !isAbove) text.setAttribute("y", y + size * 1.1);
  return text;
}

// "2 duplicate, 1 missed": the errors of an image.
function summary(list) {
  const counts = new Map();
  for (const entry of list.filter(isError)) counts.set(entry.kind, (counts.get(entry.kind) ?? 0) + 1);
  const words = [...counts].sort((a, b) => a[0] - b[0]).map(([kind, count]) => `${count} ${data.kinds[kind]}`);
  return words.join(", ") || "no errors";
}

function figures(image) {
  const loss = images.loss?.[image];
  return `error ${state.shown.lrp[image].toFixed(2)}${loss == null ? "" : `, loss ${loss.toFixed(2)}`}`;
}

function card(position) {
  const image = state.shown.order[position], list = boxesOf(image);
  const picture = element("span", {class: "picture"});
  if (images.small[image] === null) picture.append(element("span", {class: "gone"}, "cannot be read"));
  else {
    const img = element("img", {loading: "lazy", decoding: "async", alt: "", src: images.small[image]});
    img.addEventListener("error", () => img.replaceWith(element("span", {class: "gone"}, "the small copy is gone")));
    picture.append(img);
  }
  const svg = shape("svg", {preserveAspectRatio: "xMidYMid meet"});
  drawBoxes(svg, image, list, false);
  picture.append(svg);
  const caption = element("span", {class: "caption"}, element("b", {}, images.name[image]),
    element("span", {}, figures(image)), element("span", {}, summary(list)));
  const button = element("button", {type: "button", class: "card", title: images.name[image]}, picture, caption);
  button.addEventListener("click", () => openLarge(position));
  button.addEventListener("focus", () => { state.current = position; });
  return button;
}

function layout() {
  const width = at("grid").clientWidth, columns = Math.max(1, Math.floor((width + GAP) / (CARD + GAP)));
  const side = (width - GAP * (columns - 1)) / columns;
  return {columns, side, row: Math.round(side * 0.75) + CAPTION + GAP};
}

// Keeps the cards in view, and no others.
function drawGrid() {
  const {columns, side, row} = layout(), grid = at("grid"), total = state.shown.order.length;
  grid.style.height = `${Math.ceil(total / columns) * row}px`;
  const top = -grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(top / row) - SPARE_ROWS) * columns;
  const last = Math.min(total, (Math.ceil((top + window.innerHeight) / row) + SPARE_ROWS) * columns);
  for (const [position, node] of state.cards) {
    if (position >= first && position < last) continue;
    node.remove();
    state.cards.delete(position);
  }
  for (let position = first; position < last; position++) {
    if (!state.cards.has(position)) {
      const node = card(position);
      state.cards.set(position, node);
      grid.append(node);
    }
    const style = state.cards.get(position).style, place = Math.floor(position / columns);
    style.width = `${side}px`;
    style.height = `${row - GAP}px`;
    style.transform = `translate(${(position % columns) * (side + GAP)}px, ${place * row}px)`;
  }
}

function readFilter() {
  const percent = (id) => Math.round(Number(at(id).value) * IOU);
  return {
    class: Number(at("class").value),
    score: Math.round(Number(at("score").value) * SCORE),
    iouLow: percent("iou-low"),
    iouHigh: percent("iou-high"),
    kinds: state.kinds,
    name: at("name").value.trim(),
    sort: at("sort").value,
  };
}

function update() {
  state.filter = readFilter();
  state.shown = selectImages(data, state.filter);
  at("score-shown").value = Number(at("score").value).toFixed(2);
  at("count").textContent =
    `${plural(state.shown.order.length, "image")} of ${images.name.length.toLocaleString("en")}, ` +
    `${plural(state.shown.boxes, "box").replace("boxs", "boxes")} that fit`;
  for (const chip of at("kinds").children) {
    chip.lastChild.textContent = state.shown.counts[chip.dataset.kind].toLocaleString("en");
    chip.setAttribute("aria-pressed", state.kinds.has(Number(chip.dataset.kind)));
  }
  for (const node of state.cards.values()) node.remove();
  state.cards.clear();
  state.current = 0;
  drawGrid();
}

function openLarge(position) {
  const image = state.shown.order[position];
  if (image === undefined) return;
  state.open = state.current = position;
  at("place").textContent = `${(position + 1).toLocaleString("en")} of ${state.shown.order.length.toLocaleString("en")}`;
  at("file").textContent = images.name[image];
  if (!at("large").open) at("large").showModal();
  at("stage").classList.remove("actual");
  const picture = at("picture"), img = picture.querySelector("img");
  picture.style.aspectRatio = `${images.width[image]} / ${images.height[image]}`;
  picture.style.setProperty("--width", images.width[image]);
  picture.style.setProperty("--ratio", images.width[image] / images.height[image]);
  img.src = images.small[image] ?? "";
  const whole = new Image();
  whole.onload = () => { if (state.open === position) img.src = whole.src; };
  whole.src = images.url[image];
  drawLarge();
}

function drawLarge() {
  const image = state.shown.order[state.open], list = boxesOf(image);
  drawBoxes(at("picture").querySelector("svg"), image, list, true);
  at("facts").textContent = `${images.width[image]} × ${images.height[image]} pixels, ${figures(image)}: ${summary(list)}`;
  const best = list.filter((entry) => !entry.isObject || entry.kind === MISSED).reverse();
  const rows = [...best.filter(isError), ...best.filter((entry) => !isError(entry))];
  at("boxes").replaceChildren(...rows.map((entry) => {
    const words = describe(entry), patch = element("i");
    patch.style.background = color(entry.class);
    const row = element("li", {class: entry.fits ? "" : "pale"}, patch, element("b", {}, words.name),
      element("span", {class: "kind"}, words.kind), element("small", {}, words.figures));
    row.addEventListener("mouseenter", () => mark(entry, true));
    row.addEventListener("mouseleave", () => mark(entry, false));
    return row;
  }));
}

function mark(entry, isOn) {
  for (const one of [entry, entry.object]) one?.group?.classList.toggle("marked", isOn);
}

function closeLarge() {
  at("large").close();
}

function move(step) {
  const last = state.shown.order.length - 1;
  if (last < 0) return;
  const position = Math.min(last, Math.max(0, state.current + step));
  if (at("large").open) openLarge(position);
  else showCard(position);
}

// Scrolls to a card, and gives it the focus.
function showCard(position) {
  const {columns, row} = layout(), bar = at("filters").offsetHeight;
  const isSticky = getComputedStyle(at("filters")).position === "sticky";
  const top = at("grid").getBoundingClientRect().top + Math.floor(position / columns) * row - (isSticky ? bar : 0);
  const below = top + row + (isSticky ? bar : 0) - window.innerHeight;
  if (top < 0) window.scrollBy(0, top - GAP);
  else if (below > 0) window.scrollBy(0, below);
  drawGrid();
  state.current = position;
  state.cards.get(position)?.focus({preventScroll: true});
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isLarge = at("large").open;
  if (!isLarge && event.target.closest("#filters")) return;
  const columns = layout().columns;
  const steps = {ArrowRight: 1, ArrowLeft: -1, ...(isLarge ? {} : {ArrowDown: columns, ArrowUp: -columns})};
  const toggles = {t: "objects", d: "detections"};
  if (event.key in steps) {
    const isFirst = !isLarge && !document.activeElement.closest?.(".card");
    move(isFirst ? 0 : steps[event.key]);
  } else if (isLarge && event.key in toggles) {
    hidden[toggles[event.key]] = !hidden[toggles[event.key]];
    drawLarge();
  } else if (isLarge && event.key === "z") zoom();
  else return;
  event.preventDefault();
}

function zoom() {
  at("stage").classList.toggle("actual");
  drawLarge();
}

function build() {
  const used = new Array(data.classes.length).fill(0);
  objects.class.forEach((label) => { used[label]++; });
  const names = data.classes.map((name, label) => [name, label]).sort((a, b) => a[0].localeCompare(b[0]));
  at("class").append(element("option", {value: -1}, "all"));
  for (const [name, label] of names) at("class").append(element("option", {value: label}, `${name} (${used[label]})`));
  const sorts = {lrp: "error", confident: "most confident error", matches: "boxes that fit", name: "file name", "": "the data's order"};
  if (images.loss) sorts.loss = "loss";
  for (const [key, title] of Object.entries(sorts)) at("sort").append(element("option", {value: key}, title));
  data.kinds.forEach((name, kind) => {
    if (kind === IGNORED) return;
    const chip = element("button", {type: "button", "data-kind": kind, title: data.meanings[kind]}, name, " ", element("small"));
    chip.addEventListener("click", () => { state.kinds.delete(kind) || state.kinds.add(kind); update(); });
    at("kinds").append(chip);
  });
  Object.assign(at("score"), {min: data.lowest, max: 1, value: data.score});
  at("filters").addEventListener("input", update);
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("previous").addEventListener("click", () => move(-1));
  at("next").addEventListener("click", () => move(1));
  at("close").addEventListener("click", closeLarge);
  at("large").addEventListener("close", () => { showCard(state.open); state.open = -1; });
  at("large").addEventListener("click", (event) => { if (event.target === at("large")) closeLarge(); });
  at("picture").addEventListener("click", zoom);
  document.addEventListener("keydown", pressed);
  let isWaiting = false;
  const later = () => {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => { isWaiting = false; drawGrid(); });
  };
  window.addEventListener("scroll", later, {passive: true});
  window.addEventListener("resize", () => { later(); if (state.open >= 0) drawLarge(); });
  update();
}

build();
