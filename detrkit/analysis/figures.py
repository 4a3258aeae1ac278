"""Figures of how well scores agree with boxes (arXiv 2304.07527, section 3.1), from the predictions of all layers.

`examine` reduces a batch to one row per ground truth; `summarize` makes the figures of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import scipy  # loads scipy.stats at its first use, which takes half a second
import torch
from torch import Tensor

from align_detr.modeling.losses import iou_and_giou
from align_detr.modeling.matcher import GroundTruth, LayerStack, MixedMatcher

from .predictions import LayerPredictions

BINS = 10  # of scores and of IoUs, for frequencies and calibration
JOINT_BINS = 20
SAME, OTHER, NONE = 0, 1, 2  # which object a query is matched to, as seen from the one it ends at
MIN_SCORE = 1e-6


@dataclass(frozen=True)
class AlignmentTable:
    """What a model makes of M ground truths in L decoder layers.

    "Its query" is the one that a ground truth is matched to one-to-one; scores are those of the ground truth's class,
    in [0, 1]. Where there are fewer queries than ground truths, some have no query: -1, and nan for all about it.

    Attributes:
        image: (M,) int, a different number for each image.
        label: (M,) int, the class.
        count: (M,) int, ground truths in the image.
        query: (L, M) int, its query in each layer.
        score, iou: (L, M), of that query.
        final_score, final_iou: (L, M), in each layer, of its query in the last layer.
        final_rank: (L, M), that query's rank by IoU with the ground truth among all queries of the layer; 1 is best.
        final_owner: (L, M) int, what that query is matched to in each layer: SAME, OTHER object, or NONE.
        best_score, best_iou: (M,), of the best box in the last layer: of all predictions of its class
            that with the highest IoU. A prediction is one class of one query, as it is at inference.
        best_rank: (M,), that box's rank by score among all predictions of the image; 1 is best. Infinite where no
            prediction overlaps the ground truth.
    """

    image: np.ndarray
    label: np.ndarray
    count: np.ndarray
    query: np.ndarray
    score: np.ndarray
    iou: np.ndarray
    final_score: np.ndarray
    final_iou: np.ndarray
    final_rank: np.ndarray
    final_owner: np.ndarray
    best_score: np.ndarray
    best_iou: np.ndarray
    best_rank: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: np.ndarray) -> AlignmentTable:
        return AlignmentTable(*(getattr(self, field.name)[..., rows] for field in fields(self)))

    @classmethod
    def cat(cls, tables: Sequence[AlignmentTable]) -> AlignmentTable:
        """All rows, ordered by image."""
        columns = {f.name: np.concatenate([getattr(t, f.name) for t in tables], axis=-1) for f in fields(cls)}
        return cls(**columns)[columns["image"].argsort(kind="stable")]


@torch.no_grad()
def examine(
    predictions: LayerPredictions,
    targets: Sequence[dict[str, Tensor]],
    images: Sequence[tuple[int, int, int]],
    matcher: MixedMatcher,
) -> AlignmentTable:
    """One row per ground truth of a batch.

    Args:
        predictions: logits (L, B, N, C) and boxes (L, B, N, 4).
        targets: per image `labels` (G,) and `boxes` (G, 4), cxcywh in [0, 1]; on any device.
        images: per image its number, height and width; the latter two in pixels.
        matcher: its cost decides, one-to-one in every layer.
    """
    logits, boxes = predictions
    device = logits.device
    objects = GroundTruth.from_targets([{name: t[name].to(device) for name in ("labels", "boxes")} for t in targets])
    num_layers, num_objects = len(logits), len(objects.labels)
    layer = torch.arange(num_layers, device=device)[:, None]
    query, owner = _match(predictions, objects, matcher)

    # In pixels, the constant that the losses add to areas does not matter.
    numbers, heights, widths = torch.tensor(images, device=device).reshape(-1, 3)[objects.image].T
    scale = torch.stack([widths, heights, widths, heights], dim=-1)[:, None]
    ious, _ = iou_and_giou(boxes[:, objects.image] * scale, objects.boxes[:, None] * scale)  # (L, M, N)
    class_logits = logits[layer, objects.image, :, objects.labels]  # (L, M, N)

    scores = class_logits.sigmoid()
    final = query[-1].expand(num_layers, -1)
    final_iou = _of_query(ious, final)
    final_owner = owner[layer, objects.image, final]
    same = final_owner == torch.arange(num_objects, device=device)
    fate = torch.where(final_owner < 0, NONE, torch.where(same, SAME, OTHER))

    best_iou = ious[-1].amax(-1)
    # Of several equally good boxes the one that scores highest; logits, as sigmoids of large ones are equal.
    candidates = class_logits[-1].masked_fill(ious[-1] < best_iou[:, None], -torch.inf)
    best_logit = candidates.amax(-1)
    rank = 1.0 + (logits[-1].flatten(1)[objects.image] > best_logit[:, None]).sum(-1)
    columns = AlignmentTable(
        image=numbers,
        label=objects.labels,
        count=torch.tensor(objects.sizes, device=device)[objects.image],
        query=query,
        score=_of_query(scores, query),
        iou=_of_query(ious, query),
        final_score=_of_query(scores, final),
        final_iou=final_iou,
        final_rank=1.0 + (ious > final_iou[..., None]).sum(-1).float().masked_fill(final < 0, torch.nan),
        final_owner=fate,
        best_score=best_logit.sigmoid(),
        best_iou=best_iou,
        best_rank=rank.masked_fill(best_iou == 0, torch.inf),
    )
    return AlignmentTable(*(getattr(columns, field.name).cpu().numpy() for field in fields(columns)))


def _match(predictions: LayerPredictions, objects: GroundTruth, matcher: MixedMatcher) -> tuple[Tensor, Tensor]:
    """Match each layer one-to-one.

    Returns:
        The query (L, M) of each object and the object (L, B, N) of each query; -1 for none.
    """
    logits, boxes = predictions
    num_layers, device = len(logits), logits.device
    stack = LayerStack(logits, boxes, [""] * num_layers, [1] * num_layers, [False] * num_layers)
    (pairs,) = matcher.match_layers([stack], objects)
    query = torch.full((num_layers, len(objects.labels)), -1, device=device)
    query[pairs.layer, pairs.object] = pairs.query
    owner = torch.full(logits.shape[:3], -1, device=device)
    owner[pairs.layer, pairs.image, pairs.query] = pairs.object
    return query, owner


def _of_query(values: Tensor, chosen: Tensor) -> Tensor:
    """Values (L, M, N) of the queries (L, M); nan for query -1."""
    return values.gather(-1, chosen.clamp(min=0)[..., None])[..., 0].masked_fill(chosen < 0, torch.nan)


def aligned_logits(logits: Tensor, table: AlignmentTable, rows_by_image: Sequence[int]) -> Tensor:
    """Logits of perfectly aligned scores: each matched prediction has its IoU for a score, the others keep theirs.

    This is the oracle "gt_cls_iou" of VarifocalNet (arXiv 2008.13367, section 3).

    Args:
        logits: (B, N, C), of the last layer.
        table: of these images.
        rows_by_image: number of each image of the batch in the table.
    """
    position = {number: i for i, number in enumerate(rows_by_image)}
    matched = table[table.query[-1] >= 0]
    image = torch.tensor([position[number] for number in matched.image.tolist()], dtype=torch.int64)
    iou = torch.from_numpy(matched.iou[-1]).clamp(MIN_SCORE, 1 - MIN_SCORE).to(logits)
    aligned = logits.clone()
    aligned[image, torch.from_numpy(matched.query[-1]), torch.from_numpy(matched.label)] = iou.logit()
    return aligned


def headline(table: AlignmentTable) -> dict[str, float]:
    """The figures that are one number each; nan where there is nothing to compute one from.

    Shares and means are in [0, 1]:
    `best_in_top_n`, `best_in_top_2n`: share of ground truths whose best box is among the N and 2N highest scores of its
    image, N being its number of ground truths. `best_iou`, `best_score`: means over the best boxes.
    `matched_iou`, `matched_score`: means over the predictions matched in the last layer; `pearson`, `spearman`: their
    correlation; `expected_error`, `absolute_error`: of the score as an estimate of the IoU, in bins of the score (the
    expected calibration error) and of each prediction on its own.
    `same_query`: share of ground truths matched to the same query in two consecutive decoder layers, mean over layers.
    """
    score, iou = _matched(table, -1)
    return {
        "best_in_top_n": _mean(table.best_rank <= table.count),
        "best_in_top_2n": _mean(table.best_rank <= 2 * table.count),
        "best_iou": _mean(table.best_iou),
        "best_score": _mean(table.best_score),
        "matched_iou": _mean(iou),
        "matched_score": _mean(score),
        "pearson": _correlation(scipy.stats.pearsonr, score, iou),
        "spearman": _correlation(scipy.stats.spearmanr, score, iou),
        "expected_error": expected_error(reliability(score, iou)),
        "absolute_error": _mean(np.abs(score - iou)),
        "same_query": _mean(_same_query(table)),
    }


def summarize(table: AlignmentTable) -> dict:
    """All figures, ready for JSON: those of `headline`, and

    * `iou_frequency`: share of the matched predictions in each of `BINS` equal bins of the IoU;
    * `joint_histogram`: their numbers by score (columns) and IoU (rows), `JOINT_BINS` equal bins each;
    * `reliability`: see `reliability`;
    * `layers`: for each decoder layer the correlation and means of its own matched predictions, `same_query_as_before`
      (share of ground truths matched to the same query as one layer earlier), and where the last layer's queries are:
      the shares matched to the `same` object, to an `other` and to `none`, their mean score and IoU, and the median of
      their ranks by IoU.
    """
    score, iou = _matched(table, -1)
    unit = [0.0, 1.0]
    joint, _, _ = np.histogram2d(iou, score, bins=JOINT_BINS, range=[unit, unit])
    frequency, _ = np.histogram(iou, bins=BINS, range=unit)
    figures = {
        **headline(table),
        "objects": len(table),
        "matched": len(score),
        "iou_frequency": (frequency / max(1, len(iou))).tolist(),
        "joint_histogram": joint.astype(int).tolist(),
        "reliability": reliability(score, iou),
        "layers": [_layer(table, index) for index in range(len(table.query))],
    }
    return _without_nan(figures)


def reliability(score: np.ndarray, iou: np.ndarray) -> list[dict[str, float]]:
    """Per bin of the score, `BINS` of equal width: `low`, `high`, `count`, means `score` and `iou` (nan if empty)."""
    position = np.minimum((score * BINS).astype(int), BINS - 1)
    return [
        {
            "low": index / BINS,
            "high": (index + 1) / BINS,
            "count": int(inside.sum()),
            "score": _mean(score[inside]),
            "iou": _mean(iou[inside]),
        }
        for index in range(BINS)
        for inside in [position == index]
    ]


def expected_error(bins: Sequence[dict[str, float]]) -> float:
    """Mean distance of mean score and mean IoU over the bins of `reliability`, weighted by their counts."""
    filled = [b for b in bins if b["count"]]
    total = sum(b["count"] for b in filled)
    return sum(b["count"] * abs(b["score"] - b["iou"]) for b in filled) / total if total else float("nan")


def bootstrap(tables: Sequence[AlignmentTable], draws: np.ndarray) -> list[dict]:
    """`headline` of each table for the drawings of images `draws`, as arrays (repeats,).

    All tables see the same drawings, so differences between them are those of models on equal images.

    Args:
        tables: with images numbered from 0.
        draws: (repeats, images), of `draw_images`.
    """
    results = []
    for table in tables:
        rows = np.arange(len(table))
        drawn = [headline(table[rows.repeat(times[table.image])]) for times in draws]
        results.append({name: np.array([figures[name] for figures in drawn]) for name in drawn[0]})
    return results


def draw_images(images: int, repeats: int = 200, seed: int = 0) -> np.ndarray:
    """(repeats, images) how often each image is drawn, of `images` drawings with replacement."""
    random = np.random.default_rng(seed)
    return np.stack([np.bincount(random.integers(0, images, images), minlength=images) for _ in range(repeats)])


def interval(values: np.ndarray) -> list[float] | None:
    """The central 95 % of bootstrap `values`; None if there are any that could not be computed."""
    return None if np.isnan(values).any() else np.percentile(values, [2.5, 97.5]).tolist()


def _layer(table: AlignmentTable, index: int) -> dict:
    score, iou = _matched(table, index)
    has_query = table.query[-1] >= 0
    owner = table.final_owner[index, has_query]
    ranks = table.final_rank[index, has_query]
    return {
        "pearson": _correlation(scipy.stats.pearsonr, score, iou),
        "spearman": _correlation(scipy.stats.spearmanr, score, iou),
        "matched_score": _mean(score),
        "matched_iou": _mean(iou),
        "same_query_as_before": _mean(_same_query(table)[index - 1]) if index else None,
        "final_query": {
            "same": _mean(owner == SAME),
            "other": _mean(owner == OTHER),
            "none": _mean(owner == NONE),
            "score": _mean(table.final_score[index, has_query]),
            "iou": _mean(table.final_iou[index, has_query]),
            "median_rank": float(np.median(ranks)) if len(ranks) else float("nan"),
        },
    }


def _matched(table: AlignmentTable, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and IoUs of a layer's matched predictions."""
    matched = table.query[layer] >= 0
    return table.score[layer, matched].astype(float), table.iou[layer, matched].astype(float)


def _same_query(table: AlignmentTable) -> np.ndarray:
    """(L - 1, M) bool: matched to one query in a layer and the next."""
    return (table.query[1:] == table.query[:-1]) & (table.query[1:] >= 0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _correlation(function, x: np.ndarray, y: np.ndarray) -> float:
    """nan where one of the two does not vary."""
    varies = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    return float(function(x, y).statistic) if varies else float("nan")


def _without_nan(value):
    """JSON has no nan: None."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
