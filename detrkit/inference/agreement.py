"""Do two networks find the same?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate

from detrkit.runtime.text import plural

from .network import Network, Predictions

THRESHOLD = 0.05  # of the scores that count
BOX_TOLERANCE = 0.5  # pixels
SCORE_TOLERANCE = 1e-3
LISTED = 10


@dataclass(frozen=True)
class Comparison:
    """Comparison of two networks on one image.

    Attributes:
        counts: detections above THRESHOLD, of the reference and of the other.
        unmatched: detections without a partner, but for those that are within SCORE_TOLERANCE of the threshold,
            or of the last detection if all are above it.
        box, score: the largest differences of partners, boxes in pixels of the image.
        seconds: that the reference and the other took.
    """

    name: str
    counts: tuple[int, int]
    unmatched: int
    box: float
    score: float
    seconds: tuple[float, float]

    @property
    def agrees(self) -> bool:
        return self.unmatched == 0 and self.box <= BOX_TOLERANCE and self.score <= SCORE_TOLERANCE


def compare(reference: Network, other: Network, pictures: Iterable[tuple[str, np.ndarray]]) -> list[Comparison]:
    """Each image through both, prepared as `other` has it.

    Args:
        pictures: names and pixels, (H, W, 3) RGB uint8.
    """
    (results,) = compare_each(reference, [other], other.prepare, pictures)
    return results


def compare_each(
    reference: Network,
    others: Sequence[Network],
    prepare: Callable[[np.ndarray], np.ndarray],
    pictures: Iterable[tuple[str, np.ndarray]],
) -> list[list[Comparison]]:
    """`compare` with several others at once: the results of each, in their order.

    Args:
        prepare: makes the image that all of them get, see `Network.prepare`.
    """
    results: list[list[Comparison]] = [[] for _ in others]
    for name, pixels in pictures:
        image, size = prepare(pixels), pixels.shape[:2]
        moments = [time.perf_counter()]
        found = []
        for network in (reference, *others):
            found += network.detect([image], [size])
            moments.append(time.perf_counter())
        spent, *each = np.diff(moments).tolist()
        for of_network, its, seconds in zip(results, found[1:], each, strict=True):
            of_network.append(_compared(name, found[0], its, (spent, seconds)))
    return results


def _compared(name: str, a: Predictions, b: Predictions, seconds: tuple[float, float]) -> Comparison:
    counts = tuple(int((found.scores > THRESHOLD).sum()) for found in (a, b))
    # Where more score above it than a detector gives, the last of them are the threshold.
    is_cut = counts[0] == counts[1] == len(a.scores) == len(b.scores) > 0
    threshold = max(a.scores.min(), b.scores.min()) if is_cut else THRESHOLD
    # What is just above the threshold on one side may be just below it on the other.
    a, b = (Predictions(*(x[found.scores > threshold - SCORE_TOLERANCE] for x in found)) for found in (a, b))
    boxes = np.abs(a.boxes[:, None] - b.boxes).max(-1, initial=0)
    scores = np.abs(a.scores[:, None] - b.scores)
    far = (boxes > BOX_TOLERANCE) | (scores > SCORE_TOLERANCE)
    # Partners are of one class, near if possible: equal scores may come in either order.
    other_class = a.classes[:, None] != b.classes
    rows, columns = linear_sum_assignment(other_class * 1e6 + far * 1e3 + np.minimum(boxes, 1e3) + scores)
    same = ~other_class[rows, columns]
    rows, columns = rows[same], columns[same]
    alone = sum(
        int((np.delete(found.scores, taken) > threshold + SCORE_TOLERANCE).sum())
        for found, taken in ((a, rows), (b, columns))
    )
    return Comparison(
        name,
        counts,
        alone,
        float(boxes[rows, columns].max(initial=0)),
        float(scores[rows, columns].max(initial=0)),
        seconds,
    )


def agreement_table(results: list[Comparison], names: tuple[str, str]) -> str:
    """All images in a line, and below it the first of those that do not agree."""
    wrong = [result for result in results if not result.agrees]
    rows = [_row("all", results)]
    rows += [_row(result.name, [result]) for result in wrong[:LISTED]]
    rows += [[f"and {len(wrong) - LISTED} more"]] if len(wrong) > LISTED else []
    heads = ["images", "", *names, "unmatched", "boxes, px", "scores", *(f"{name}, s" for name in names)]
    return tabulate(rows, heads, disable_numparse=True, colalign=("left", *["right"] * (len(heads) - 1)))


def verdict(results: list[Comparison], names: tuple[str, str]) -> str:
    """Return whether the networks agree, in one line with the largest differences."""
    reference, other = names
    wrong, alone = sum(not result.agrees for result in results), sum(result.unmatched for result in results)
    box, score = _largest(results)
    largest = f"boxes differ by at most {box} px, scores by at most {score}"
    if not wrong:
        return f"{other} and {reference} agree on {plural(len(results), 'image')}: {largest}"
    unmatched = f", and {plural(alone, 'detection')} without a partner" if alone else ""
    return f"{other} and {reference} disagree on {wrong} of {plural(len(results), 'image')}: {largest}{unmatched}"


def rounding_table(results: Mapping[str, list[Comparison]]) -> str:
    """How far networks that round are from one that does not; a line for each of them."""
    rows = [
        [
            name,
            f"{sum(result.agrees for result in its)} of {len(its)}",
            str(sum(result.unmatched for result in its)),
            *_largest(its),
        ]
        for name, its in results.items()
    ]
    heads = ["beside float64", "agrees", "unmatched", "boxes, px", "scores"]
    return tabulate(rows, heads, disable_numparse=True, colalign=("left", *["right"] * (len(heads) - 1)))


def _row(name: str, results: list[Comparison]) -> list[str]:
    counts = [str(sum(result.counts[side] for result in results)) for side in (0, 1)]
    seconds = [f"{np.median([result.seconds[side] for result in results]):.3f}" for side in (0, 1)]
    return [
        name,
        str(len(results)),
        *counts,
        str(sum(result.unmatched for result in results)),
        *_largest(results),
        *seconds,
    ]


def _largest(results: list[Comparison]) -> list[str]:
    return [f"{max(getattr(result, what) for result in results):.2g}" for what in ("box", "score")]
