"""Plots of the figures of one or several models; they can be read without colours.

Each function takes models as `{"name": …, "figures": <summarize>, "ap": <plain and aligned>}` and returns a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from .figures import BINS

SIZE = (4.6, 3.7)  # inches; the letters then have the page's size on a phone
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.09,
}
NAME_LENGTH = 28


class Look(NamedTuple):
    """How a model looks in a plot; lightness, hatch and marker differ, and not the hue alone."""

    color: str
    hatch: str
    marker: str
    line: str


LOOKS = (
    Look("#123c69", "", "o", "-"),
    Look("#e39a3b", "///", "s", "--"),
    Look("#bfd3c1", "...", "^", "-."),
    Look("#7d6b91", "xxx", "D", ":"),
    Look("#f3e3d3", "\\\\\\", "v", "-"),
)
FATES = {
    "same": ("this object", "#123c69", ""),
    "other": ("another", "#e39a3b", "///"),
    "none": ("none", "#ececec", ".."),
}


def best_regressed(models: Sequence[dict]) -> Figure:
    """Best boxes in top N and 2N: the share of objects whose best box is among the N and 2N highest scores."""
    groups = {"top N": "best_in_top_n", "top 2N": "best_in_top_2n"}
    values = [[model["figures"][key] for key in groups.values()] for model in models]
    return _grouped_bars(
        models,
        values,
        list(groups),
        title="Best boxes in top N and 2N",
        x_label="predictions of the image (N: its objects)",
        y_label="share of objects",
        limit=1.0,
    )


def average_precision(models: Sequence[dict]) -> Figure:
    """AP, and AP with scores replaced by the IoU."""
    values = [[model["ap"]["plain"].get("AP"), model["ap"]["aligned"].get("AP")] for model in models]
    return _grouped_bars(
        models,
        values,
        ["own scores", "IoU as score"],
        title="What misalignment costs",
        x_label="score of the matched predictions",
        y_label="box AP (%)",
        number="{:.1f}",
    )


def consistency(models: Sequence[dict]) -> Figure:
    """Share of ground truths that keep their query from layer to layer."""
    values = [[layer["same_query_as_before"] for layer in model["figures"]["layers"][1:]] for model in models]
    longest = max(map(len, values))
    return _grouped_bars(
        models,
        [row + [None] * (longest - len(row)) for row in values],
        [f"{i + 1} to {i + 2}" for i in range(longest)],
        title="Objects that keep their query",
        x_label="decoder layers",
        y_label="share of objects",
        limit=1.0,
    )


def iou_frequency(models: Sequence[dict]) -> Figure:
    """How many of the matched predictions are how well localised."""
    figure = _grouped_bars(
        models,
        [[100 * share for share in model["figures"]["iou_frequency"]] for model in models],
        [""] * BINS,
        title="Localisation of the matched predictions",
        x_label="IoU with the object",
        y_label="matched predictions (%)",
        number=None,
    )
    axes = figure.axes[0]
    axes.set_xticks(np.arange(BINS + 1) - 0.5, [f"{i / BINS:.1f}" for i in range(BINS + 1)])
    return figure


def reliability_diagram(models: Sequence[dict]) -> Figure:
    """Mean IoU by score. On the diagonal both are equal."""
    with rc_context(STYLE):
        figure, axes = _axes()
        axes.plot([0, 1], [0, 1], color="#555555", linewidth=1, label="score = IoU")
        for model, look in zip(models, cycle(LOOKS), strict=False):
            bins = [b for b in model["figures"]["reliability"] if b["count"]]
            axes.plot(
                [b["score"] for b in bins],
                [b["iou"] for b in bins],
                look.line,
                marker=look.marker,
                color=look.color,
                markeredgecolor="black",
                markeredgewidth=0.5,
                label=f"{_short(model['name'])}: expected error {_number(model['figures']['expected_error'])}",
            )
        axes.set(
            title="Score as an estimate of the IoU",
            xlabel="score of the matched prediction, mean of bin",
            ylabel="its IoU, mean of bin",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        _legend_below(figure, axes, len(models))
    return figure


def iof_iob(models: Sequence[dict]) -> Figure:
    """Co-DETR's curve. Above the diagonal, the encoder's features separate objects from background."""
    with rc_context(STYLE):
        figure, axes = _axes()
        axes.plot([0, 1], [0, 1], color="#555555", linewidth=1, label="no difference")
        for model, look in zip(models, cycle(LOOKS), strict=False):
            line = model["figures"]["iof_iob"] or {"iob": [], "iof": []}
            area = _number(model["figures"]["discriminability"])
            label = f"{_short(model['name'])}: area {area}"
            axes.plot(line["iob"], line["iof"], look.line, color=look.color, linewidth=2, label=label)
        axes.set(
            title="Objects and background in the encoder",
            xlabel="background above the threshold (IoB)",
            ylabel="objects above the threshold (IoF)",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        _legend_below(figure, axes, len(models))
    return figure


def joint_histogram(model: dict) -> Figure:
    """Numbers of matched predictions by score and IoU."""
    counts = np.array(model["figures"]["joint_histogram"])
    top = max(2, int(counts.max()))
    with rc_context(STYLE):
        figure, axes = _axes()
        axes.grid(False)
        shown = np.ma.masked_equal(counts, 0)
        mesh = axes.imshow(
            shown,
            origin="lower",
            extent=(0, 1, 0, 1),
            aspect="equal",
            cmap="Greys",
            norm=LogNorm(0.5, top),
        )
        axes.plot([0, 1], [0, 1], color="#b3541e", linestyle="--", linewidth=1)
        bar = figure.colorbar(mesh, ax=axes, shrink=0.9)
        ticks = [*(10**power for power in range(7) if 1.5 * 10**power < top), top]
        bar.set_ticks(ticks, labels=[str(tick) for tick in ticks])
        bar.minorticks_off()
        bar.set_label("matched predictions")
        numbers = [f"{name} {_number(model['figures'][name.lower()])}" for name in ("Spearman", "Pearson")]
        axes.set(title="Score and IoU\n" + ", ".join(numbers), xlabel="score", ylabel="IoU with the object")
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.set_yticks(np.linspace(0, 1, 6))
    return figure


def final_queries(model: dict) -> Figure:
    """Where the last layer's queries were matched in each layer, and how well they sat."""
    layers = [layer["final_query"] for layer in model["figures"]["layers"]]
    x = np.arange(len(layers))
    with rc_context(STYLE):
        figure, axes = _axes()
        axes.grid(axis="x", visible=False)
        bottom = np.zeros(len(layers))
        for key, (label, color, hatch) in FATES.items():
            heights = np.array([_value(layer[key]) for layer in layers])
            axes.bar(x, heights, 0.6, bottom, color=color, hatch=hatch, edgecolor="black", linewidth=0.5, label=label)
            bottom += heights
        ious = [_value(layer["iou"]) for layer in layers]
        axes.plot(x, ious, "-o", color="white", markeredgecolor="black", markersize=6, linewidth=3.5)
        axes.plot(x, ious, "-o", color="#b3541e", markeredgecolor="black", markersize=5, label="mean IoU")
        ranks = ["" if layer["median_rank"] is None else f"\nrank {layer['median_rank']:g}" for layer in layers]
        axes.set_xticks(x, [f"{i + 1}{rank}" for i, rank in enumerate(ranks)])
        axes.set(
            title="The last layer's queries, layer by layer",
            xlabel="decoder layer, and the queries' median rank by IoU",
            ylabel="share of objects; IoU",
            ylim=(0, 1),
            xlim=(-0.6, len(layers) - 0.4),
        )
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, title="matched to", handlelength=1.4,
                      columnspacing=1.0)  # fmt: skip
    return figure


def _grouped_bars(
    models: Sequence[dict],
    values: Sequence[Sequence[float | None]],
    groups: Sequence[str],
    title: str,
    x_label: str,
    y_label: str,
    limit: float | None = None,
    number: str | None = "{:.2f}",
) -> Figure:
    """A bar per model in each group.

    Args:
        values: a row per model; None for no bar.
        number: format of the number on each bar; None for no numbers. They are left out if there is no room.
    """
    with rc_context(STYLE):
        figure, axes = _axes()
        axes.grid(axis="x", visible=False)
        width = min(0.8 / len(models), 0.3)
        for i, (model, row, look) in enumerate(zip(models, values, cycle(LOOKS), strict=False)):
            places = np.arange(len(groups)) + (i - (len(models) - 1) / 2) * width
            bars = axes.bar(
                places,
                [_value(value) for value in row],
                width,
                color=look.color,
                hatch=look.hatch,
                edgecolor="black",
                linewidth=0.5,
                label=_short(model["name"]),
            )
            if number and len(models) * len(groups) <= 12:
                texts = ["" if value is None else number.format(value) for value in row]
                axes.bar_label(bars, texts, padding=2, fontsize=8)
        axes.set_xticks(range(len(groups)), groups)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.margins(y=0.12)
        if limit is not None:
            axes.set_ylim(0, limit * 1.08)
            axes.set_yticks(np.linspace(0, limit, 6))
        _legend_below(figure, axes, len(models))
    return figure


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE)
    return figure, figure.add_subplot()


def _legend_below(figure: Figure, axes: Axes, count: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= 26 and count > 1 else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 3]}..."


def _value(value: float | None) -> float:
    return float("nan") if value is None else value


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


SHARED = {
    "best_regressed": best_regressed,
    "average_precision": average_precision,
    "iou_frequency": iou_frequency,
    "reliability": reliability_diagram,
    "consistency": consistency,
    "discriminability": iof_iob,
}
BY_MODEL = {"joint_histogram": joint_histogram, "final_queries": final_queries}
