"""Curves of a training: average precision, losses by decoder layer, learning rate, time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from detrkit.analysis.plots import LOOKS, SIZE
from detrkit.analysis.plots import STYLE as PLOT_STYLE

Rows = Sequence[Mapping[str, float | None]]  # of metrics.json

MOST_POINTS = 250  # of a curve
KINDS = {"class": "Classification", "bbox": "Box L1", "giou": "Box GIoU"}
BRANCHES = {"": "", "dn": ", denoising queries", "one2many": ", one-to-many branch"}
ALIGNMENT = {
    "alignment/best_in_top_n": "best boxes in top N",
    "alignment/best_in_top_2n": "best boxes in top 2N",
    "alignment/spearman": "Spearman, score and IoU",
    "alignment/expected_error": "expected error of the score",
}


def curves(rows: Rows) -> Iterator[tuple[Callable[[], Figure], str]]:
    """The plots that have curves of two points or more: a function that draws each, and its caption."""
    names = {name for row in rows for name in row if len(series(rows, name)) > 1}
    tasks = sorted(name.rpartition("/")[0] for name in names if name.endswith("/AP"))
    if tasks:
        labels = {f"{task}/{ap}": _ap_label(task, ap) for task in tasks for ap in ("AP", "AP50", "AP75")}
        yield lambda: _lines(rows, labels, "Average precision", "box AP (%)"), "Of the test images, by evaluation."
    if names & ALIGNMENT.keys():
        yield (
            lambda: _lines(rows, ALIGNMENT, "Scores and boxes", "share; correlation; error"),
            "How well scores rank the boxes, on a sample of the test images. Best boxes in top N: the share of objects "
            "whose best box is among the N highest scores of an image with N objects.",
        )
    if "total_loss" in names:
        yield lambda: _lines(rows, {"total_loss": "total"}, "Total loss", "weighted loss"), "The sum of all losses."
    for (kind, branch), by_layer in sorted(_losses(names).items(), key=lambda item: _order(*item[0])):
        title = f"{KINDS.get(kind, kind)}{BRANCHES.get(branch, f', {branch}')}"
        yield (
            lambda by_layer=by_layer, title=title: _layer_lines(rows, by_layer, title),
            f"{title}, as weighted in the sum: one line per decoder layer"
            f"{', and the encoder' if 'encoder' in by_layer else ''}.",
        )
    if "lr" in names:
        yield lambda: _lines(rows, {"lr": "lr"}, "Learning rate", "learning rate", "zero"), "Of most parameters."
    if "grad_norm" in names:
        yield (
            lambda: _lines(rows, {"grad_norm": "norm"}, "Norm of the gradients", "norm, before clipping", "log"),
            "Before clipping.",
        )
    if "time" in names:
        labels = {"time": "all", "data_time": "waiting for data"}
        yield (
            lambda: _lines(rows, labels, "Time of an iteration", "seconds", "zero"),
            "If waiting for data takes more than a few per cent, more workers help "
            "(dataloader.train.num_workers).",
        )


def _ap_label(task: str, ap: str) -> str:
    return ap if task == "bbox" else f"{ap}, {task.removeprefix('bbox_').replace('_', ' ').replace('ema', 'EMA')}"


def _losses(names: set[str]) -> dict[tuple[str, str], dict[str, str]]:
    """Group loss names such as `loss_class_dn_3`: `{(kind, branch): {layer: name}}`, the last layer last."""
    groups: dict[tuple[str, str], dict[int, str]] = {}
    encoder = {}
    for name in names:
        head, *parts = name.split("_")
        if head != "loss" or not parts:
            continue
        kind, *rest = parts
        numbers = [int(part) for part in rest if part.isdecimal()]
        branch = "_".join(part for part in rest if not part.isdecimal())
        if branch == "enc":
            encoder[kind, ""] = name
        else:
            groups.setdefault((kind, branch), {})[numbers[0] if numbers else len(names)] = name
    result = {}
    for group, by_number in groups.items():
        layers = {f"layer {i}": by_number[number] for i, number in enumerate(sorted(by_number), start=1)}
        result[group] = ({"encoder": encoder[group]} if group in encoder else {}) | layers
    return result


def _order(kind: str, branch: str) -> tuple:
    """Sort key of a plot of losses."""
    kinds, branches = list(KINDS), list(BRANCHES)
    return (
        branches.index(branch) if branch in branches else len(branches),
        branch,
        kinds.index(kind) if kind in kinds else len(kinds),
        kind,
    )


def _lines(rows: Rows, names: Mapping[str, str], title: str, y_label: str, scale: str = "free") -> Figure:
    """A curve for each name that has two values or more; `scale` is "free", "zero" (the axis begins at 0) or "log"."""
    with rc_context(PLOT_STYLE):
        figure, axes = _axes(title, y_label)
        lines = [(text, points) for name, text in names.items() if len(points := series(rows, name)) > 1]
        for index, (text, points) in enumerate(lines):
            look = LOOKS[index % len(LOOKS)]
            few = len(points) <= 40
            axes.plot(
                *zip(*points, strict=True),
                look.line,
                color=look.color,
                marker=look.marker if few else None,
                markeredgecolor="black",
                markeredgewidth=0.4,
                markersize=4.5,
                linewidth=1.6,
                label=text,
            )
        if scale == "log":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        elif scale == "zero":
            axes.set_ylim(bottom=0, top=1.08 * max((y for _, points in lines for _, y in points), default=0) or 1)
        if len(lines) > 1:
            figure.legend(loc="outside lower center", ncols=2 if len(lines) > 2 else len(lines))
    return figure


def _layer_lines(rows: Rows, by_layer: Mapping[str, str], title: str) -> Figure:
    """Light for the first decoder layer, dark for the last; the encoder is dashed."""
    with rc_context(PLOT_STYLE):
        figure, axes = _axes(title, "weighted loss")
        layers = [layer for layer in by_layer if layer != "encoder"]
        for layer, name in by_layer.items():
            points = series(rows, name)
            if len(points) < 2:
                continue
            depth = (layers.index(layer) + 1) / len(layers) if layer in layers else 0
            axes.plot(
                *zip(*points, strict=True),
                "-" if layer in layers else ":",
                color=colormaps["cividis_r"](0.12 + 0.88 * depth) if layer in layers else "#b3541e",
                linewidth=2 if depth == 1 else 1.3,
                label=layer,
            )
        if len(by_layer) > 1:
            figure.legend(loc="outside lower center", ncols=4, handlelength=1.4, columnspacing=1.0)
    return figure


def _axes(title: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel="iteration", ylabel=y_label)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure, axes


def series(rows: Rows, name: str) -> list[tuple[int, float]]:
    """(iteration, value) of a metric, without values that are not finite.

    Of more than `MOST_POINTS`, the means of consecutive ones.
    """
    points = [(row["iteration"], row[name]) for row in rows if math.isfinite(number(row.get(name)))]
    if len(points) <= MOST_POINTS:
        return points
    return [tuple(block.mean(axis=0)) for block in np.array_split(np.array(points), MOST_POINTS)]


def number(value: float | None, otherwise: float = -math.inf) -> float:
    """The value, or `otherwise` if it is None or not finite."""
    return otherwise if value is None or not math.isfinite(value) else value
