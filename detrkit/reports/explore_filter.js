// Which images and boxes fit the filters, without the page: `selectImages` is a function of data and filter.
"use strict";

const CORRECT = 0, IGNORED = 6, MISSED = 7; // places in data.kinds
const SCORE = 10000, IOU = 1000; // parts of a unit, as explore_page.py writes them

// Whether a detection fits the filter's score, class and IoU. Its object's class counts as well as its own.
function fitsDetection(data, filter, number, firstObject) {
  const {detections, objects} = data;
  if (detections.score[number] < filter.score || detections.kind[number] === IGNORED) return false;
  if (detections.iou[number] < filter.iouLow || detections.iou[number] > filter.iouHigh) return false;
  if (filter.class < 0 || detections.class[number] === filter.class) return true;
  const about = detections.about[number];
  return about >= 0 && objects.class[firstObject + about] === filter.class;
}

// Whether an object is missed and fits the filter's class and IoU. The IoU of a missed object is 0.
function fitsMissed(data, filter, number) {
  const {objects} = data;
  if (objects.crowd[number] || objects.seen[number] >= filter.score || filter.iouLow > 0) return false;
  return filter.class < 0 || objects.class[number] === filter.class;
}

// Numerator of the LRP error (arXiv 1807.01696): 1 for each wrong detection and each object that is not found, and
// (1 - IoU) / (1 - threshold) for each correct detection. With a class: for its detections and objects alone.
function lrpSum(data, filter, image) {
  const {detections, objects} = data;
  let sum = 0;
  for (let n = detections.first[image]; n < detections.first[image + 1]; n++) {
    if (detections.score[n] < filter.score) break; // they come by descending score
    if (detections.kind[n] === IGNORED || (filter.class >= 0 && detections.class[n] !== filter.class)) continue;
    const offset = (1 - detections.iou[n] / IOU) / Math.max(1 - data.iou, 1e-9);
    sum += detections.kind[n] === CORRECT ? offset : 1;
  }
  for (let n = objects.first[image]; n < objects.first[image + 1]; n++) {
    if (objects.crowd[n] || objects.found[n] >= filter.score) continue;
    if (filter.class < 0 || objects.class[n] === filter.class) sum += 1;
  }
  return sum;
}

// filter: {class: -1 for all, score, iouLow, iouHigh: whole numbers as in data, kinds: Set, empty for all, name, sort}.
// Returns {order: numbers of images, counts: boxes by kind, whatever kinds are chosen, boxes, lrp, matches, confident}.
function selectImages(data, filter) {
  const {detections, objects, images} = data;
  const count = images.name.length, counts = new Array(data.kinds.length).fill(0);
  const lrp = new Float64Array(count), matches = new Int32Array(count), confident = new Float64Array(count);
  const wanted = (kind) => !filter.kinds.size || filter.kinds.has(kind);
  const isOpen = filter.class < 0 && !filter.kinds.size && filter.iouLow <= 0 && filter.iouHigh >= IOU;
  const name = filter.name.toLowerCase();
  const order = [];
  let boxes = 0;
  for (let i = 0; i < count; i++) {
    if (name && !images.name[i].toLowerCase().includes(name)) continue;
    for (let n = detections.first[i]; n < detections.first[i + 1]; n++) {
      if (detections.score[n] < filter.score) break;
      if (!fitsDetection(data, filter, n, objects.first[i])) continue;
      const kind = detections.kind[n];
      counts[kind]++;
      if (!wanted(kind)) continue;
      matches[i]++;
      if (kind !== CORRECT) confident[i] = Math.max(confident[i], detections.score[n]);
    }
    for (let n = objects.first[i]; n < objects.first[i + 1]; n++) {
      if (!fitsMissed(data, filter, n)) continue;
      counts[MISSED]++;
      if (wanted(MISSED)) matches[i]++;
    }
    lrp[i] = lrpSum(data, filter, i);
    boxes += matches[i];
    if (isOpen || matches[i]) order.push(i);
  }
  const keys = {lrp, confident, matches, loss: images.loss};
  if (filter.sort === "name") order.sort((a, b) => (images.name[a] < images.name[b] ? -1 : 1));
  else if (keys[filter.sort]) order.sort((a, b) => keys[filter.sort][b] - keys[filter.sort][a] || a - b);
  return {order, counts, boxes, lrp, matches, confident};
}
