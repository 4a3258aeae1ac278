"use strict";

const LOWEST_SCORE = 0.05; // asked of the server; the slider chooses among the detections on the page
const MOST = 300;
const element = (id) => document.getElementById(id);
const canvas = element("canvas");

let limits = { max_bytes: Infinity };
let shown = null; // { image, width, height, detections }
let highlighted = null; // a detection
let request = 0; // number of the latest one: answers to earlier ones are ignored

const color = (index) => `hsl(${(index * 137.508 + 210) % 360} 75% 42%)`;
const threshold = () => Number(element("threshold").value);
const visible = () => shown.detections.filter((detection) => detection.score >= threshold());

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

/** The image as the browser decodes it, upright; null for kinds that it cannot show, such as TIFF. */
async function decode(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    return null;
  }
}

async function detect(file) {
  const number = ++request;
  if (file.size > limits.max_bytes) {
    say(`The file has ${(file.size / 1e6).toFixed(1)} MB: at most ${(limits.max_bytes / 1e6).toFixed(1)} MB.`, true);
    return;
  }
  const image = await decode(file);
  if (number !== request) return;
  shown = image && { image, width: image.width, height: image.height, detections: [] };
  show();
  canvas.classList.add("waiting");
  say("Detecting …");
  const begin = performance.now();
  try {
    const response = await fetch(`detect?score_threshold=${LOWEST_SCORE}&top=${MOST}`, { method: "POST", body: file });
    const answer = await response.json();
    if (number !== request) return;
    if (!response.ok) throw new Error(answer.error);
    shown = { image, ...answer, seconds: (performance.now() - begin) / 1000 };
    show();
  } catch (error) {
    if (number !== request) return;
    say(error instanceof TypeError ? "The server does not answer." : error.message, true);
  } finally {
    if (number === request) canvas.classList.remove("waiting");
  }
}

function show() {
  canvas.hidden = element("other").hidden = !shown;
  element("drop").hidden = Boolean(shown);
  element("list").replaceChildren();
  highlighted = null;
  if (!shown) return;
  draw();
  if (shown.seconds === undefined) return;
  const found = visible();
  const count = `${found.length} ${found.length === 1 ? "object" : "objects"} in ${shown.seconds.toFixed(2)} s`;
  say(shown.image ? count : `${count}. This browser cannot show this kind of image.`);
  element("list").append(...found.map(row));
}

function row(detection) {
  const item = document.createElement("li");
  const [swatch, label, score] = ["i", "span", "b"].map((name) => item.appendChild(document.createElement(name)));
  swatch.style.background = color(detection.class);
  label.textContent = detection.label;
  score.textContent = detection.score.toFixed(2);
  item.addEventListener("mouseenter", () => highlight(detection));
  item.addEventListener("mouseleave", () => highlight(null));
  return item;
}

function highlight(detection) {
  highlighted = detection;
  draw();
}

/** Draw the image and its boxes; small images are enlarged so that labels stay readable. */
function draw() {
  const scale = Math.max(1, 900 / Math.max(shown.width, shown.height));
  canvas.width = Math.round(shown.width * scale);
  canvas.height = Math.round(shown.height * scale);
  const context = canvas.getContext("2d");
  context.fillStyle = "#8a929c";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (shown.image) context.drawImage(shown.image, 0, 0, canvas.width, canvas.height);
  const pixel = canvas.width / (canvas.clientWidth || canvas.width); // of the screen, in those of the canvas
  for (const detection of visible().reverse()) {
    context.globalAlpha = highlighted && highlighted !== detection ? 0.2 : 1;
    drawBox(context, detection, scale, pixel);
  }
  context.globalAlpha = 1;
}

function drawBox(context, detection, scale, pixel) {
  const line = 2.5 * pixel;
  const [left, top, right, bottom] = detection.box.map((side) => side * scale);
  context.strokeStyle = context.fillStyle = color(detection.class);
  context.lineWidth = line;
  context.strokeRect(left, top, right - left, bottom - top);
  const size = 12 * pixel;
  const text = `${detection.label} ${detection.score.toFixed(2)}`;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const width = context.measureText(text).width + size * 0.6;
  const height = size * 1.35;
  const x = Math.max(0, Math.min(left - line / 2, canvas.width - width));
  const y = top >= height ? top - height : Math.min(top, canvas.height - height);
  context.fillRect(x, y, width, height);
  context.fillStyle = "#fff";
  context.textBaseline = "middle";
  context.fillText(text, x + size * 0.3, y + height / 2);
}

function take(files) {
  if (files.length) detect(files[0]);
}

element("file").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // the same file may be chosen again
});
element("other").addEventListener("click", () => element("file").click());
element("threshold").addEventListener("input", () => {
  element("value").textContent = threshold().toFixed(2);
  if (shown) show();
});
window.addEventListener("resize", () => shown && draw());
document.addEventListener("paste", (event) => take(event.clipboardData.files));
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    const leaves = name === "drop" || (name === "dragleave" && !event.relatedTarget);
    element("stage").classList.toggle("over", !leaves);
    if (name === "drop") take(event.dataTransfer.files);
  });
}

function setThreshold(value) {
  element("threshold").value = value;
  element("value").textContent = threshold().toFixed(2);
}

setThreshold(0.3);
fetch("health").then((response) => response.json()).then((health) => {
  limits = health;
  setThreshold(health.score_threshold);
  const count = health.classes.length;
  element("model").textContent = `${health.model}, ${count} ${count === 1 ? "class" : "classes"}`;
}).catch(() => say("The server does not answer.", true));
