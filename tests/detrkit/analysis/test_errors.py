"""Thresholds, confusion matrix and kinds of error, against loops on random cases, by hand, and against COCO's AP."""

import numpy as np
import pytest

from detrkit.analysis.detection_matching import ImageBoxes, match_detections, mean_average_precision
from detrkit.analysis.error_summary import summarize_errors
from detrkit.analysis.errors import KINDS, confusion_matrix, error_costs, error_kinds, missed_objects
from detrkit.analysis.thresholds import best_threshold, threshold_curve

CLASSES = 3


def image_of(objects=(), detections=(), crowds=()):
    """From `(class, x, y, x, y)` and `(class, score, x, y, x, y)`."""
    truth = [*objects, *crowds]
    return ImageBoxes(
        np.array([box for _, *box in truth], float).reshape(-1, 4),
        np.array([label for label, *_ in truth], int),
        np.array([False] * len(objects) + [True] * len(crowds), bool),
        np.array([box for _, _, *box in detections], float).reshape(-1, 4),
        np.array([score for _, score, *_ in detections], float),
        np.array([label for label, *_ in detections], int),
    )


def random_images(seed):
    """Objects, crowds, and detections near them or anywhere, some with one score."""
    random = np.random.default_rng(seed)

    def boxes(count):
        corner = random.uniform(0, 60, (count, 2))
        return np.concatenate([corner, corner + random.uniform(5, 40, (count, 2))], 1)

    images = []
    for _ in range(random.integers(1, 5)):
        truth = boxes(random.integers(0, 6))
        near = truth.repeat(random.integers(0, 4), 0) + random.normal(0, 4, (1, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        found = np.concatenate([near, boxes(random.integers(0, 5))])
        images.append(
            ImageBoxes(
                truth,
                random.integers(0, CLASSES, len(truth)),
                random.random(len(truth)) < 0.15,
                found,
                random.random(len(found)).round(1 if seed % 2 else 6),
                random.integers(0, CLASSES, len(found)),
            )
        )
    return images


def iou(a, b, of_crowd=False):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    area = [max(x[2] - x[0], 0) * max(x[3] - x[1], 0) for x in (a, b)]
    union = area[0] if of_crowd else area[0] + area[1] - common
    return common / union if union > 0 else 0.0


def matched_slowly(images):
    """A list of dicts, one for each detection, and the classes of the objects by `(image, object)`."""
    entries, objects = [], {}
    for number, image in enumerate(images):
        own = [g for g in range(len(image.gt_classes)) if not image.is_crowd[g]]
        objects |= {(number, g): int(image.gt_classes[g]) for g in own}
        taken = set()
        for d in sorted(range(len(image.scores)), key=lambda d: -image.scores[d]):
            label, box = int(image.classes[d]), image.boxes[d]
            same = {g: iou(box, image.gt_boxes[g]) for g in own if image.gt_classes[g] == label}
            other = {g: iou(box, image.gt_boxes[g]) for g in own if image.gt_classes[g] != label}
            entry = {"image": number, "class": label, "score": float(image.scores[d]), "target": None, "ignored": False}
            free = {g: value for g, value in same.items() if g not in taken and value >= 0.5}
            if free:
                best = max(free, key=free.get)
                taken.add(best)
                entry["target"] = (number, best)
            else:
                for g in range(len(image.gt_classes)):
                    if image.is_crowd[g] and image.gt_classes[g] == label:
                        entry["ignored"] |= iou(box, image.gt_boxes[g], of_crowd=True) >= 0.5
            highest_same, highest_other = max(same.values(), default=0), max(other.values(), default=0)
            if entry["target"] is not None or entry["ignored"]:
                entry["kind"] = "correct"
            elif highest_same >= 0.5:
                entry["kind"] = "duplicate"
            elif highest_other >= 0.5:
                entry["kind"], entry["about"] = "classification", (number, max(other, key=other.get))
            elif highest_same >= 0.1:
                entry["kind"], entry["about"] = "localisation", (number, max(same, key=same.get))
            elif highest_other >= 0.1:
                entry["kind"] = "both"
            else:
                entry["kind"] = "background"
            entries.append(entry)
    return entries, objects


def missed_slowly(entries, objects):
    seen = {entry["target"] for entry in entries} | {entry.get("about") for entry in entries}
    return [key for key in objects if key not in seen]


def ap_slowly(entries, objects):
    """Mean over classes of the mean over 101 recalls of the highest precision at that recall or more."""
    values = []
    for label in range(CLASSES):
        count = sum(known == label for known in objects.values())
        if not count:
            continue
        points, true = [], 0
        ranked = sorted((e for e in entries if e["class"] == label), key=lambda e: -e["score"])
        for rank, entry in enumerate(ranked, 1):
            true += entry["target"] is not None
            points.append((true / count, true / rank))
        grid = [max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
        values.append(sum(grid) / 101)
    return sum(values) / len(values) if values else None


def costs_slowly(entries, objects):
    entries = [dict(entry) for entry in entries if not entry["ignored"]]
    before = ap_slowly(entries, objects)
    if before is None:
        return dict.fromkeys((*KINDS, "missed"))
    costs = {}
    for kind in KINDS:
        changed = [dict(entry) for entry in entries]
        if kind in ("classification", "localisation"):
            for entry in changed:
                if entry["kind"] == kind:
                    entry["target"], entry["class"] = entry["about"], objects[entry["about"]]
            kept, taken = [], set()
            for entry in sorted(changed, key=lambda e: -e["score"]):
                if entry["target"] is None or entry["target"] not in taken:
                    kept.append(entry)
                taken.add(entry["target"])
            changed = [entry for entry in changed if any(entry is other for other in kept)]
        else:
            changed = [entry for entry in changed if entry["kind"] != kind]
        costs[kind] = ap_slowly(changed, objects) - before
    gone = missed_slowly(entries, objects)
    without = ap_slowly(entries, {key: label for key, label in objects.items() if key not in gone})
    costs["missed"] = (1.0 if without is None else without) - before
    return costs


def confusion_slowly(images, threshold):
    matrix = [[0] * (CLASSES + 1) for _ in range(CLASSES + 1)]
    for image in images:
        own = [g for g in range(len(image.gt_classes)) if not image.is_crowd[g]]
        kept = [d for d in range(len(image.scores)) if image.scores[d] >= threshold]
        pairs = []
        for d in kept:
            for g in own:
                value, differs = iou(image.boxes[d], image.gt_boxes[g]), image.classes[d] != image.gt_classes[g]
                if value >= 0.5:
                    pairs.append((differs, -value, -image.scores[d], d, g))
        detections, objects = set(), set()
        for _, _, _, d, g in sorted(pairs):
            if d not in detections and g not in objects:
                detections.add(d)
                objects.add(g)
                matrix[image.gt_classes[g]][image.classes[d]] += 1
        for d in set(kept) - detections:
            crowds = [g for g in range(len(image.gt_classes)) if image.is_crowd[g]]
            crowds = [g for g in crowds if image.gt_classes[g] == image.classes[d]]
            if not any(iou(image.boxes[d], image.gt_boxes[g], of_crowd=True) >= 0.5 for g in crowds):
                matrix[CLASSES][image.classes[d]] += 1
        for g in set(own) - objects:
            matrix[image.gt_classes[g]][CLASSES] += 1
    return matrix


def best_slowly(entries, count):
    """`(f1, threshold)` of the highest F1, by trying each score."""
    best = (0.0, None)
    for threshold in sorted({entry["score"] for entry in entries}, reverse=True):
        kept = [entry for entry in entries if entry["score"] >= threshold]
        true = sum(entry["target"] is not None for entry in kept)
        if not true:
            continue
        precision, recall = true / len(kept), true / count
        f1 = 2 * precision * recall / (precision + recall)
        if f1 > best[0] + 1e-12:
            best = (f1, threshold)
    return best


@pytest.mark.parametrize("start", range(0, 200, 20))
def test_loops_say_the_same(start):
    """Protects every figure of the page from an error of indexing: 200 cases with crowds, ties and empty images."""
    for seed in range(start, start + 20):
        images = random_images(seed)
        entries, objects = matched_slowly(images)
        matched = match_detections(images)
        kinds = error_kinds(matched)
        keys = list(objects)
        assert [keys[t] if t >= 0 else None for t in matched.target] == [entry["target"] for entry in entries]
        assert matched.ignored.tolist() == [entry["ignored"] for entry in entries]
        assert [KINDS[kind] if kind >= 0 else "correct" for kind in kinds] == [entry["kind"] for entry in entries]
        missed = [key for key, is_missed in zip(keys, missed_objects(matched, kinds), strict=True) if is_missed]
        assert missed == missed_slowly(entries, objects)
        assert error_costs(matched, CLASSES) == pytest.approx(costs_slowly(entries, objects), abs=1e-12)
        for threshold in (0.0, 0.3, 0.7):
            assert confusion_matrix(images, CLASSES, threshold).tolist() == confusion_slowly(images, threshold)
        counted = [entry for entry in entries if not entry["ignored"]]
        summary = summarize_errors(images, "abc")
        assert summary["AP"] == pytest.approx(ap_slowly(counted, objects))
        for label in (*range(CLASSES), None):
            own = [entry for entry in counted if label in (entry["class"], None)]
            count = sum(label in (known, None) for known in objects.values())
            f1, threshold = best_slowly(own, count)
            part = summary if label is None else summary["classes"][label]
            assert part["score_threshold"] == threshold
            assert (part["f1"] or 0.0) == pytest.approx(f1)


def test_ap_is_that_of_coco():
    """Protects the AP costs: they are differences of the AP that an evaluation prints."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    for seed in range(0, 40, 2):
        images = random_images(seed)
        truth, results = [], []
        for number, image in enumerate(images):
            for box, label, crowd in zip(image.gt_boxes, image.gt_classes, image.is_crowd, strict=True):
                x, y, right, bottom = box.tolist()
                size = right - x, bottom - y
                entry = {"id": len(truth) + 1, "image_id": number, "category_id": int(label), "bbox": [x, y, *size]}
                truth.append({**entry, "area": size[0] * size[1], "iscrowd": int(crowd)})
            for box, score, label in zip(image.boxes, image.scores, image.classes, strict=True):
                x, y, right, bottom = box.tolist()
                entry = {"image_id": number, "category_id": int(label), "bbox": [x, y, right - x, bottom - y]}
                results.append({**entry, "score": float(score)})
        if not truth or not results:
            continue
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number} for number in range(len(images))],
            "annotations": truth,
            "categories": [{"id": label} for label in range(CLASSES)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.evaluate()
        evaluation.accumulate()
        precision = evaluation.eval["precision"][0, :, :, 0, -1]
        expected = precision[precision > -1].mean() if (precision > -1).any() else None
        assert summarize_errors(images, "abc")["AP"] == pytest.approx(expected, abs=1e-9)


def test_kinds_by_hand():
    """One detection of each kind, around two objects of different classes."""
    objects = [(0, 0, 0, 10, 10), (1, 20, 0, 30, 10), (2, 50, 50, 60, 60)]
    detections = [
        (0, 0.9, 0, 0, 10, 10),  # correct
        (0, 0.8, 0, 1, 10, 10),  # a second one on the same object
        (0, 0.7, 20, 0, 30, 10),  # on the object of class 1
        (0, 0.6, 0, 7, 10, 17),  # IoU 0.18 with its object
        (2, 0.5, 0, 7, 10, 17),
        (0, 0.4, 80, 80, 90, 90),
    ]
    summary = summarize_errors([image_of(objects, detections)], "abc")
    matched = match_detections([image_of(objects, detections)])
    kinds = [KINDS[kind] if kind >= 0 else "correct" for kind in error_kinds(matched)]
    assert kinds == ["correct", "duplicate", "classification", "localisation", "both", "background"]
    # Best F1: the first detection alone, so two objects of three are missed.
    assert summary["score_threshold"] == 0.9 and summary["f1"] == 0.5
    assert {name: entry["count"] for name, entry in summary["errors"].items()} == {
        **dict.fromkeys(KINDS, 0),
        "missed": 2,
    }
    assert summary["errors"]["classification"]["AP_cost"] == pytest.approx(1 / 3)
    assert summary["confusion"]["matrix"][0][0] == 1 and summary["confusion"]["matrix"][1][3] == 1


def test_nothing_to_count():
    """No images, no objects, no detections: figures are None, and nothing is raised."""
    for images in ([], [image_of()], [image_of(detections=[(0, 0.5, 0, 0, 9, 9)])]):
        summary = summarize_errors(images, "ab")
        assert summary["AP"] is None and summary["score_threshold"] is None
    summary = summarize_errors([image_of(objects=[(1, 0, 0, 9, 9)])], "ab")
    assert summary["AP"] == 0 and summary["f1"] is None and summary["errors"]["missed"]["count"] == 1
    assert mean_average_precision(np.zeros(0), np.zeros(0, int), np.zeros(0, bool), np.zeros(2, int)) is None


def test_equal_scores_are_kept_together():
    """No threshold can separate them."""
    curve = threshold_curve(np.array([0.9, 0.5, 0.5, 0.5]), np.array([False, True, False, True]), 2)
    assert curve.thresholds.tolist() == [0.9, 0.5] and curve.precision.tolist() == [0, 0.5]
    assert best_threshold(curve) == 0.5 and curve.at(0.95) == (None, 0.0, 0.0)
    assert curve.at(0.5) == curve.at(0.1) == (0.5, 1.0, pytest.approx(2 / 3))
