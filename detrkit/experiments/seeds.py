"""Trainings with several seeds: means, deviations, intervals of differences, as table and plot.

A result is the dict of metrics of one training. A setting has one result per seed. A family is a list of settings that
are compared with one of them, the reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from tabulate import tabulate

from detrkit.analysis.plots import STYLE

CONFIDENCE = 0.95
INK, FAINT = "#123c69", "#777777"
PLACES = 11  # values in a row of panels


def summarize(
    settings: Mapping[str, Sequence[Mapping]], reference: str, metrics: Sequence[str], deciding: str
) -> dict:
    """Mean and deviation of every setting of a family, and its difference from the reference with an interval.

    The deviation between seeds is pooled over all settings, as a few seeds of one setting do not determine it. It is
    assumed to be the same in all of them. The interval is Student's for the difference of two means.

    Args:
        settings: the results of each, by name.
        reference: name of the setting that the others are compared with.
        metrics: metrics to average; results may lack some.
        deciding: the metric that is compared, which every result has.

    Returns:
        `pooled_deviation`, `degrees_of_freedom`, and for each of the `settings` its `name`, number of results `n`,
        `metrics` (mean and deviation), `difference` (see `difference`; None for the reference itself) and `runs`.
    """
    scores = {name: [result[deciding] for result in results] for name, results in settings.items()}
    pooled, freedom = pooled_deviation(list(scores.values()))
    rows = []
    for name, results in settings.items():
        found = {metric: [r[metric] for r in results if r.get(metric) is not None] for metric in metrics}
        compared = None if name == reference else difference(scores[name], scores[reference], pooled, freedom)
        rows.append(
            {
                "name": name,
                "n": len(results),
                "metrics": {
                    metric: {"mean": fmean(values), "deviation": stdev(values) if len(values) > 1 else None}
                    for metric, values in found.items()
                    if values
                },
                "difference": compared,
                "runs": list(results),
            }
        )
    return {"metric": deciding, "pooled_deviation": pooled, "degrees_of_freedom": freedom, "settings": rows}


def pooled_deviation(groups: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """Standard deviation within groups, and its degrees of freedom; (None, 0) if no group has two values."""
    freedom = sum(len(group) - 1 for group in groups if group)
    if not freedom:
        return None, 0
    squares = sum((value - fmean(group)) ** 2 for group in groups if group for value in group)
    return math.sqrt(squares / freedom), freedom


def difference(
    values: Sequence[float], reference: Sequence[float], deviation: float | None, freedom: int
) -> dict[str, float | bool | None] | None:
    """Difference of two means, with the half-width of its interval; None if a side has no values."""
    if not values or not reference:
        return None
    mean = fmean(values) - fmean(reference)
    if deviation is None:
        return {"mean": mean, "half_width": None, "within_noise": None}
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    half_width = quantile * deviation * math.sqrt(1 / len(values) + 1 / len(reference))
    return {"mean": mean, "half_width": half_width, "within_noise": abs(mean) <= half_width}


def table(rows: Sequence[Mapping], titles: Sequence[str], heads: Mapping[str, tuple[str, int]], versus: str) -> str:
    """A table in Markdown with a line per row of `summarize`.

    Args:
        titles: first cell of each line.
        heads: title and number of digits of each metric; metrics that no row has are left out.
        versus: title of the last column, the differences.
    """
    metrics = [metric for metric in heads if any(metric in row["metrics"] for row in rows)]
    lines = [
        [title, *(cell(row, metric, heads[metric][1]) for metric in metrics), row["n"], verdict(row["difference"])]
        for title, row in zip(titles, rows, strict=True)
    ]
    names = ["setting", *(heads[metric][0] for metric in metrics), "n", versus]
    align = ("left", *["right"] * (len(metrics) + 1), "left")
    return tabulate(lines, names, tablefmt="github", colalign=align, disable_numparse=True)


def cell(row: Mapping, metric: str, digits: int) -> str:
    """Mean and deviation of a metric."""
    values = row["metrics"].get(metric)
    if values is None:
        return "–"
    around = "" if values["deviation"] is None else f" ± {values['deviation']:.{digits}f}"
    return f"{values['mean']:.{digits}f}{around}".replace("-", "−")


def verdict(compared: Mapping | None) -> str:
    """A difference with its interval, and whether it is within noise."""
    if compared is None:
        return ""
    mean = f"{round(compared['mean'], 2) + 0.0:+.2f}".replace("-", "−")  # adding zero turns -0.0 into 0.0
    if compared["half_width"] is None:
        return mean
    return f"{mean} ± {compared['half_width']:.2f}{', within noise' if compared['within_noise'] else ''}"


@rc_context(STYLE)
def draw_rows(rows: Sequence[Mapping], titles: Sequence[str], metric: str, label: str, title: str) -> Figure:
    """A plot with a line per row of `summarize` that has results, the first on top."""
    figure = Figure(figsize=(7, 1.5 + 0.28 * len(rows)))
    axes = figure.add_subplot()
    shown = [(name, row) for name, row in zip(titles, rows, strict=True) if row["n"]][::-1]
    for y, (_, row) in enumerate(shown):
        draw_point(axes, y, row, metric, upright=False)
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.set(xlabel=label, title=title)
    axes.grid(axis="y", visible=False)
    return figure


@rc_context(STYLE)
def draw_panels(
    panels: Mapping[str, Sequence[tuple[str, Mapping]]],
    reference: Mapping,
    plain: Mapping | None,
    rows: Sequence[Mapping],
    metric: str,
    label: str,
) -> Figure:
    """A plot with a panel per option: dots are runs, bars are standard deviations.

    Args:
        panels: by option, values and their rows of the summary.
        reference, plain: rows that are drawn as lines in each panel.
        rows: all rows; the widest of their intervals is a band around the reference.
        label: label of the axis.
    """
    lines = _in_lines(panels)
    figure = Figure(figsize=(0.4 + 0.82 * len(lines[0]), 0.7 + 2.5 * len(lines)))
    places = figure.subplot_mosaic(lines, sharey=True, empty_sentinel=None)
    for option, axes in places.items():
        _draw_reference(axes, reference, plain, rows, metric)
        _draw_values(axes, panels[option], metric)
        axes.set_xlabel(option)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(label)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _in_lines(panels: Mapping[str, Sequence]) -> list[list[str | None]]:
    """Rows of panels: the option's name for each of its values, filled up with None."""
    lines: list[list[str | None]] = [[]]
    for option, entries in panels.items():
        if lines[-1] and len(lines[-1]) + len(entries) > PLACES:
            lines.append([])
        lines[-1] += [option] * len(entries)
    longest = max(PLACES, *map(len, lines))
    return [line + [None] * (longest - len(line)) for line in lines]


def _draw_values(axes: Axes, entries: Sequence[tuple[str, Mapping]], metric: str) -> None:
    """Draw each value; a line joins values that are numbers."""
    shown = [(place, row) for place, (_, row) in enumerate(entries) if row["n"]]
    for place, row in shown:
        draw_point(axes, place, row, metric, upright=True)
    if all(_is_number(value) for value, _ in entries):
        means = [row["metrics"][metric]["mean"] for _, row in shown]
        axes.plot([place for place, _ in shown], means, color=INK, linewidth=1)
    axes.set_xticks(range(len(entries)), [value for value, _ in entries])
    axes.set_xlim(-0.5, len(entries) - 0.5)
    axes.grid(axis="x", visible=False)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _draw_reference(
    axes: Axes, reference: Mapping, plain: Mapping | None, rows: Sequence[Mapping], metric: str
) -> None:
    """Lines for default and baseline, and a band in which differences from the default are within noise."""
    if reference["n"]:
        mean = reference["metrics"][metric]["mean"]
        widths = [row["difference"]["half_width"] for row in rows if row["difference"]]
        width = max((width for width in widths if width is not None), default=None)
        if width is not None:
            axes.axhspan(mean - width, mean + width, color="#ececec", label="within noise of the default", zorder=0)
        axes.axhline(mean, color="#555555", linewidth=1, label="default")
    if plain is not None and plain["n"]:
        mean = plain["metrics"][metric]["mean"]
        axes.axhline(mean, color="#b3541e", linestyle="--", linewidth=1.2, label="plain baseline")


def draw_point(axes: Axes, place: float, row: Mapping, metric: str, upright: bool) -> None:
    """A dot per run, and a square with bars for mean and deviation; hollow for a reference."""
    values = row["metrics"][metric]
    runs = [result[metric] for result in row["runs"]]
    places = [place - 0.14] * len(runs)
    style = dict(marker="o", color="none", markeredgecolor=FAINT, markersize=3.5, linestyle="none", zorder=3)
    axes.plot(*((places, runs) if upright else (runs, places)), **style, label="runs" if place == 0 else None)
    error = {"yerr" if upright else "xerr": values["deviation"] or 0}
    position = (place, values["mean"]) if upright else (values["mean"], place)
    axes.errorbar(
        *position,
        **error,
        fmt="s",
        color=INK,
        markerfacecolor="white" if row["difference"] is None else INK,
        markersize=5.5,
        capsize=3,
        zorder=4,
        label="mean ± deviation" if place == 0 else None,
    )
