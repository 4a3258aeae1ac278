"""The figures of alignment, by hand and by the slowest obvious code, and the predictions they are made from."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from detectron2.config import instantiate

from align_detr.modeling import MixedMatcher
from detrkit.analysis import (
    AlignmentTable,
    LayerPredictions,
    aligned_logits,
    batches_of_one_size,
    detections,
    examine,
    headline,
    plots,
    predict_layers,
    summarize,
)
from detrkit.analysis.figures import NONE, OTHER, SAME, bootstrap, draw_images, interval
from detrkit.analysis.predictions import criterion_loss
from detrkit.config.load import get_config
from detrkit.reports import page
from detrkit.reports.alignment import config_name

SIDE = 100  # pixels
BY_SCORE = MixedMatcher(cost_class=1, cost_bbox=0, cost_giou=0)


def cxcywh(*corners):
    x0, y0, x1, y1 = torch.tensor(corners, dtype=torch.float32).T / SIDE
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)


@pytest.fixture
def by_hand():
    """Objects A (class 0) and B (class 1), four queries, three layers of which the first two are equal.

    In the last layer A is matched to query 1 (score 0.92, IoU 0.575) though query 0 fits it exactly (score 0.2), and
    B to query 2 (score 0.62, IoU 0.775), which is its best. Before that query 1 was B's, and query 2 nobody's.
    """
    targets = [{"labels": torch.tensor([0, 1]), "boxes": cxcywh((0, 0, 40, 40), (60, 60, 100, 100))}]
    before = (
        [[0.8, 0.1], [0.3, 0.7], [0.1, 0.2], [0.05, 0.1]],
        cxcywh((0, 0, 40, 40), (60, 60, 100, 100), (60, 60, 80, 100), (60, 60, 100, 80)),
    )
    last = (
        [[0.2, 0.1], [0.92, 0.05], [0.15, 0.62], [0.05, 0.4]],
        cxcywh((0, 0, 40, 40), (0, 0, 40, 23), (60, 60, 100, 91), (60, 80, 100, 100)),
    )
    scores, boxes = zip(before, before, last, strict=True)
    predictions = LayerPredictions(torch.tensor(scores)[:, None].logit(), torch.stack(boxes)[:, None])
    return predictions, targets, examine(predictions, targets, [(0, SIDE, SIDE)], BY_SCORE)


def test_by_hand(by_hand):
    """Every figure of a case small enough to work out on paper."""
    table = by_hand[2]
    figures = summarize(table)
    assert table.query.tolist() == [[0, 1], [0, 1], [1, 2]]
    assert table.final_owner.tolist() == [[OTHER, NONE], [OTHER, NONE], [SAME, SAME]]
    # Of the scores 0.92, 0.62, 0.4, 0.2, ... A's best box has the fourth, B's the second.
    assert table.best_rank.tolist() == [4, 2]
    expected = {
        "best_in_top_n": 1 / 2,  # N = 2
        "best_in_top_2n": 1.0,
        "best_iou": (1 + 0.775) / 2,
        "best_score": (0.2 + 0.62) / 2,
        "matched_iou": (0.575 + 0.775) / 2,
        "matched_score": (0.92 + 0.62) / 2,
        "pearson": -1.0,
        "spearman": -1.0,
        "expected_error": (0.345 + 0.155) / 2,
        "absolute_error": (0.345 + 0.155) / 2,
        "same_query": (1 + 0) / 2,
        "objects": 2,
        "matched": 2,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert figures["iou_frequency"] == [0, 0, 0, 0, 0, 0.5, 0, 0.5, 0, 0]
    joint = np.array(figures["joint_histogram"])
    assert joint[11, 18] == joint[15, 12] == 1 and joint.sum() == 2
    assert [b["count"] for b in figures["reliability"]] == [0, 0, 0, 0, 0, 0, 1, 0, 0, 1]
    assert figures["reliability"][6]["iou"] == pytest.approx(0.775)

    first, second, last = figures["layers"]
    assert (first["same_query_as_before"], second["same_query_as_before"], last["same_query_as_before"]) == (None, 1, 0)
    # Query 1 was nowhere near A, behind query 0 alone; query 2 was half of B, behind query 1.
    before = {"same": 0, "other": 0.5, "none": 0.5, "score": (0.3 + 0.2) / 2, "iou": (0 + 0.5) / 2, "median_rank": 2}
    assert first["final_query"] == second["final_query"] == pytest.approx(before, abs=1e-6)
    after = {"same": 1, "other": 0, "none": 0, "score": 0.77, "iou": 0.675, "median_rank": 1.5}
    assert last["final_query"] == pytest.approx(after, abs=1e-6)


def test_aligned_scores(by_hand):
    """Matched predictions get their IoU, and nothing else changes: here the best box of B overtakes that of A."""
    predictions, _, table = by_hand
    logits = predictions.logits[-1]
    scores = aligned_logits(logits, table, [0]).sigmoid()
    expected = logits.sigmoid().clone()
    expected[0, 1, 0], expected[0, 2, 1] = 0.575, 0.775
    torch.testing.assert_close(scores, expected)


def slow_rows(logits, boxes, targets, sizes, matcher):
    """The columns of AlignmentTable as lists, one prediction at a time."""

    def overlap(a, b):
        (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
        width = min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2)
        height = min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2)
        inter = max(0, width) * max(0, height)
        return inter / (aw * ah + bw * bh - inter)

    layers = range(len(logits))
    rows = []
    for image, target in enumerate(targets):
        labels, truths = target["labels"].tolist(), target["boxes"].double().tolist()
        matches = []
        for layer in layers:
            outputs = {"pred_logits": logits[layer, [image]], "pred_boxes": boxes[layer, [image]]}
            ((queries, objects),) = matcher(outputs, [target])
            matches.append(dict(zip(objects.tolist(), queries.tolist(), strict=True)))
        for j, (label, truth) in enumerate(zip(labels, truths, strict=True)):
            ious = [[overlap(box, truth) for box in boxes[layer, image].double().tolist()] for layer in layers]
            scores = [logits[layer, image, :, label].double().sigmoid().tolist() for layer in layers]
            final = matches[-1].get(j)
            best = max(range(len(ious[-1])), key=lambda q: (ious[-1][q], scores[-1][q]))
            everything = logits[-1, image].flatten().tolist()
            above = sum(other > logits[-1, image, best, label].item() for other in everything)
            owners = [{q: o for o, q in m.items()}.get(final) for m in matches]
            row = {
                "image": image,
                "count": len(labels),
                "query": [m.get(j, -1) for m in matches],
                "iou": [ious[i][m[j]] if j in m else math.nan for i, m in enumerate(matches)],
                "score": [scores[i][m[j]] if j in m else math.nan for i, m in enumerate(matches)],
                "best_iou": ious[-1][best],
                "best_rank": above + 1 if ious[-1][best] > 0 else math.inf,
            }
            if final is not None:
                row["final_iou"] = [ious[i][final] for i in layers]
                row["final_rank"] = [1 + sum(u > ious[i][final] for u in ious[i]) for i in layers]
                row["final_owner"] = [NONE if o is None else SAME if o == j else OTHER for o in owners]
            rows.append(row)
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_rows_match_the_slow_way(seed):
    """Batches, images of different shape and fill, more objects than queries, none at all."""
    random = torch.Generator().manual_seed(seed)
    counts = [3, 0, 1, 9, 6]
    layers, queries, classes = 3, 7, 4  # nine objects do not find a query each
    logits = torch.randn(layers, len(counts), queries, classes, generator=random)
    boxes = torch.rand(layers, len(counts), queries, 4, generator=random) * 0.4 + 0.2
    targets = [
        {
            "labels": torch.randint(classes, (count,), generator=random),
            "boxes": torch.rand(count, 4, generator=random) * 0.4 + 0.2,
        }
        for count in counts
    ]
    sizes = [(480, 640), (100, 100), (333, 500), (800, 1333), (640, 480)]
    matcher = MixedMatcher(cost_class=2, cost_bbox=5, cost_giou=2)
    table = examine(LayerPredictions(logits, boxes), targets, [(i, *size) for i, size in enumerate(sizes)], matcher)
    rows = slow_rows(logits, boxes, targets, sizes, matcher)
    assert len(table) == len(rows) == sum(counts)
    assert (table.query[-1] < 0).sum() == 2
    for index, row in enumerate(rows):
        for name, expected in row.items():
            found = getattr(table, name)[..., index]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_rows_of_two_batches_are_those_of_one(by_hand):
    """What is measured does not depend on how images were batched, or in which order they came."""
    predictions, targets, table = by_hand
    both = LayerPredictions(*(torch.cat([x, x.flip(2)], dim=1) for x in predictions))
    sizes = [(0, SIDE, SIDE), (1, SIDE, SIDE)]
    together = examine(both, targets * 2, sizes, BY_SCORE)
    parts = [
        examine(LayerPredictions(*(x[:, i : i + 1] for x in both)), targets, sizes[i : i + 1], BY_SCORE) for i in (1, 0)
    ]
    apart = AlignmentTable.cat(parts)
    for name, column in vars(together).items():
        np.testing.assert_array_equal(column, getattr(apart, name), err_msg=name)
    assert headline(together) == pytest.approx(headline(table))


def test_nothing_to_measure():
    """A dataset without objects, and boxes that touch nothing, give figures that JSON can hold, not warnings."""
    predictions = LayerPredictions(torch.zeros(2, 1, 3, 2), torch.full((2, 1, 3, 4), 0.1))
    nothing = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    table = examine(predictions, [nothing], [(0, 10, 10)], BY_SCORE)
    figures = summarize(table)
    assert figures["objects"] == 0 and figures["spearman"] is None and figures["best_in_top_n"] is None
    json.dumps(figures, allow_nan=False)

    far = {"labels": torch.tensor([0]), "boxes": torch.tensor([[0.9, 0.9, 0.1, 0.1]])}
    table = examine(predictions, [far], [(0, 10, 10)], BY_SCORE)
    assert summarize(table)["best_in_top_2n"] == 0  # a sample without overlap is not a good one that was found


def test_bootstrap_sees_equal_images_in_all_models():
    """Equal models never differ, whatever is drawn; the interval holds the figure and narrows with more images."""
    random = torch.Generator().manual_seed(0)

    def table(images):
        logits = torch.randn(1, images, 5, 2, generator=random)
        boxes = torch.rand(1, images, 5, 4, generator=random) * 0.3 + 0.3
        truths = torch.rand(images, 2, 4, generator=random) * 0.3 + 0.3
        targets = [{"labels": torch.tensor([0, 1]), "boxes": truth} for truth in truths]
        sizes = [(i, 10, 10) for i in range(images)]
        return examine(LayerPredictions(logits, boxes), targets, sizes, BY_SCORE)

    widths = []
    for images in (20, 320):
        model = table(images)
        first, second = bootstrap([model, model], draw_images(images))
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
        low, high = interval(first["matched_iou"])
        assert low < headline(model)["matched_iou"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def model_of(name, random_heads=True):
    torch.manual_seed(0)
    cfg = get_config(f"baselines/{name.removesuffix('_')}_tiny.py")
    cfg.train.device = "cpu"
    if "device" in cfg.model:
        cfg.model.device = "cpu"
    model = instantiate(cfg.model)
    with torch.no_grad():  # box heads start at zero, and all layers would give the same boxes
        for head in model.bbox_embed if isinstance(model.bbox_embed, torch.nn.ModuleList) else [model.bbox_embed]:
            torch.nn.init.normal_(head.layers[-1].weight, std=0.3)
    return model


@pytest.mark.parametrize("name", ["dino", "h_deformable_detr", "dab_detr", "conditional_detr"])
def test_layers_are_those_of_inference(name):
    """The last layer's detections are the model's own at inference, the layers differ, and the model, which was
    training, is left as it was: batch norm's statistics, the criterion and all."""
    model = model_of(name).train()
    model.backbone.eval()
    batch = [
        {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), "height": 128, "width": 192} for _ in range(2)
    ]
    state = copy.deepcopy(model.state_dict())
    criterion, modes = model.criterion, [module.training for module in model.modules()]

    logits, boxes = predict_layers(model, batch)
    assert model.criterion is criterion and [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert len(logits) == len(boxes) == model.transformer.decoder.num_layers
    assert not logits.requires_grad and not torch.allclose(boxes[0], boxes[-1], atol=1e-3)

    with torch.no_grad():
        expected = [x["instances"] for x in model.eval()(batch)]
    for found, image in zip(detections(model, logits[-1], boxes[-1], batch), expected, strict=True):
        torch.testing.assert_close(found.scores, image.scores)
        torch.testing.assert_close(found.pred_boxes.tensor, image.pred_boxes.tensor)
        assert torch.equal(found.pred_classes, image.pred_classes)


@pytest.mark.parametrize("name", ["dino", "h_deformable_detr", "dab_detr"])
def test_loss_of_an_image(name):
    """The weighted losses of the criterion's own call without denoising; twice the same, and the model is restored."""
    model = model_of(name).train()
    modes = [module.training for module in model.modules()]
    example = {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), "height": 128, "width": 192}
    target = {"labels": torch.tensor([1, 0]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.25, 0.25, 0.2, 0.3]])}
    heard = []

    def hear(module, args, losses):  # as numbers: detrex's models change the tensors in place
        heard.append((args, {key: float(value) for key, value in losses.items()}))

    hook = model.criterion.register_forward_hook(hear)
    first = criterion_loss(model, example, target)
    hook.remove()
    assert criterion_loss(model, example, target) == pytest.approx(first, rel=1e-5) and np.isfinite(first) and first > 0
    assert [module.training for module in model.modules()] == modes
    (args, losses) = heard[0]
    torch.testing.assert_close(args[1][0]["boxes"], target["boxes"])
    weights = model.criterion.weight_dict
    assert first == pytest.approx(sum(losses[key] * weights[key] for key in losses if key in weights), rel=1e-4)
    empty = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    assert np.isfinite(criterion_loss(model, example, empty))


def test_layers_of_what_is_no_detector():
    """A model without a criterion, and images that need padding, are refused by name."""
    image = {"image": torch.zeros(3, 8, 8)}
    with pytest.raises(ValueError, match="Linear has no criterion"):
        predict_layers(torch.nn.Linear(1, 1), [image])
    with pytest.raises(ValueError, match="Linear has no criterion"):
        criterion_loss(torch.nn.Linear(1, 1), image, {})
    with pytest.raises(ValueError, match="images of one size"):
        predict_layers(torch.nn.Linear(1, 1), [image, {"image": torch.zeros(3, 8, 9)}])


def test_batches_by_size():
    """Every image once, only equal sizes together, full batches as far as there are enough; few images in waiting."""
    sizes = [(8, 8 + i % 3) for i in range(20)] + [(8, 8)] * 9 + [(9, i) for i in range(1, 200)]
    held = 0

    def examples():
        nonlocal held
        for i, size in enumerate(sizes):
            held += 1
            yield {"image": torch.empty(3, *size), "id": i}

    seen = []
    for batch in batches_of_one_size(examples(), 4):
        held -= len(batch)
        assert held <= 64 and len(batch) <= 4
        assert len({x["image"].shape for x in batch}) == 1
        seen += [x["id"] for x in batch]
    assert sorted(seen) == list(range(len(sizes))) and held == 0


def test_plots_and_page_of_odd_reports(by_hand):
    """One model, many, and one without any figures: a page each, self-contained and with every name escaped."""
    table = by_hand[2]
    empty = table[np.zeros(0, dtype=int)]
    lines = {"discriminability": 0.7, "iof_iob": {"iof": [0, 0.9, 1], "iob": [0, 0.5, 1]}}
    for tables in ([table], [empty], [table, empty] * 3):
        models = [
            {
                "name": f"<model> {i} with a name that is long",
                "config": "a.py",
                "checkpoint": "",
                "figures": (figures := summarize(one) | (lines if len(one) else dict.fromkeys(lines))),
                "intervals": dict.fromkeys(figures),
                "differences": dict.fromkeys(figures),
                "ap": {"plain": {"AP": None}, "aligned": {"AP": 3.0}, "cost": None},
            }
            for i, one in enumerate(tables)
        ]
        for draw in plots.SHARED.values():
            assert draw(models).axes[0].get_title()
        for draw in plots.BY_MODEL.values():
            assert draw(models[0]).axes[0].get_xlabel()
        report = {"dataset": "d", "images": 1, "objects": 2, "repeats": 2, "environment": {}, "models": models}
        shared, by_model = dict.fromkeys(plots.SHARED, b"png"), [dict.fromkeys(plots.BY_MODEL, b"png")] * len(models)
        html = page.render(report, shared, by_model)
        assert "<model>" not in html and "$" not in html
        assert "http:" not in html and "https:" not in html
        assert html.count("<section>") == (len(models) if len(models) > 1 else 0)


@pytest.mark.parametrize(
    "config, name",
    [("output/mine/config.yaml", "mine"), ("output/mine/config.py", "mine"), ("align_detr_tiny.py", "align_detr_tiny")],
)
def test_models_of_runs_have_the_name_of_the_run(config, name):
    """Protects the report from columns that are all called "config"."""
    assert config_name(config) == name
