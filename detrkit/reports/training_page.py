"""One HTML page on a training as it goes: losses by decoder layer, AP, predictions; it needs nothing but itself."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from detrkit.analysis.plots import LOOKS, SIZE, iou_frequency, joint_histogram, reliability_diagram
from detrkit.analysis.plots import STYLE as PLOT_STYLE

from .page import DASH, EXPLANATIONS, STYLE

Rows = Sequence[Mapping[str, float | None]]

DPI = 130
MOST_POINTS = 250  # of a curve
MOST_EVALUATIONS = 15  # in the table
RELOAD_SECONDS = 60
KINDS = {"class": "Classification", "bbox": "Box L1", "giou": "Box GIoU"}
BRANCHES = {"": "", "dn": ", denoising queries", "one2many": ", one-to-many branch"}
AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
ALIGNMENT = {
    "alignment/best_in_top_n": "best-regressed in top N",
    "alignment/best_in_top_2n": "best-regressed in top 2N",
    "alignment/spearman": "Spearman, score and IoU",
    "alignment/expected_error": "expected error of the score",
}
ALIGNMENT_HEADS = dict(zip(ALIGNMENT, ("top N", "top 2N", "Spearman", "error"), strict=True))


class Sample(NamedTuple):
    """An image of the evaluation: JPEGs of ground truth and predictions, and a line on them."""

    truth: bytes
    found: bytes
    caption: str


@dataclass
class Progress:
    """What the page shows.

    Attributes:
        rows: of metrics.json, in order of `iteration`; see `read_metrics`.
        figures: `summarize` of the last evaluation's detections, if there were any to look at.
        seen: on how many images `figures` are.
        facts: name and text of what runs where.
    """

    name: str
    iteration: int
    max_iter: int
    rows: Rows
    written: str
    config: str = ""
    samples: Sequence[Sample] = ()
    samples_note: str = ""
    figures: Mapping | None = None
    seen: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The rows of a metrics.json, of which each iteration is in one place.

    Where a run was resumed from an earlier iteration, or started anew, what it then did again replaces what was there.
    Lines that a crash cut short are left out.
    """
    rows: list[dict] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            iteration = row["iteration"]
        except (ValueError, TypeError, KeyError):
            continue
        while rows and rows[-1]["iteration"] >= iteration:
            rows.pop()
        rows.append(row)
    return rows


def render(progress: Progress) -> str:
    complete = progress.iteration >= progress.max_iter
    plots = "\n".join(_plot(draw(), text) for draw, text in _curves(progress.rows))
    return PAGE.substitute(
        title=f"Training of {escape(progress.name)}",
        reload="" if complete else f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">',
        style=STYLE + EXTRA_STYLE,
        lead=_lead(progress),
        tiles="\n".join(f"<div><b>{value}</b><small>{name}</small></div>" for name, value in _tiles(progress)),
        evaluations=_section("Evaluations", _evaluations(progress.rows, progress.max_iter)),
        plots=_section("Curves", f'<div class="plots">{plots}</div>' if plots else ""),
        samples=_section("Predictions beside ground truth", _samples(progress)),
        alignment=_section("Scores and boxes", _alignment(progress)),
        facts="\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in progress.facts.items()),
        config=escape(progress.config),
    )


def _lead(progress: Progress) -> str:
    if progress.iteration >= progress.max_iter:
        return f"All {progress.max_iter} iterations are done. Written {escape(progress.written)}."
    left = _latest(progress.rows, "eta_seconds")
    eta = "" if left is None else f", about {timedelta(seconds=round(left))} left"
    share = progress.iteration / progress.max_iter
    return (
        f"Iteration {progress.iteration} of {progress.max_iter} ({share:.0%}{eta}). "
        f"Written {escape(progress.written)}; this page loads itself anew every minute."
    )


def _tiles(progress: Progress) -> Iterator[tuple[str, str]]:
    rows = progress.rows
    points = _series(rows, "bbox/AP")
    if points:
        best = max(points, key=lambda point: point[1])
        yield "box AP, %", f"{points[-1][1]:.1f}"
        yield f"best AP, iteration {min(best[0] + 1, progress.max_iter)}", f"{best[1]:.1f}"
    for name, title, form in (
        ("alignment/best_in_top_n", "best-regressed in top N", "{:.2f}"),
        ("total_loss", "total loss", "{:.3g}"),
        ("lr", "learning rate", "{:.2g}"),
        ("time", "seconds an iteration", "{:.3g}"),
        ("data_time", "of them waiting for data", "{:.2g}"),
    ):
        value = _latest(rows, name)
        if value is not None:
            yield title, form.format(value)


def _evaluations(rows: Rows, max_iter: int) -> str:
    """A table with a line per evaluation, newest first; iterations are those done by then."""
    found = [row for row in rows if row.get("bbox/AP") is not None]
    if not found:
        return ""
    columns = {f"bbox/{name}": (name, 1) for name in AP_NAMES}
    columns |= {key: (text, 2) for key, text in ALIGNMENT_HEADS.items()}
    columns = {key: value for key, value in columns.items() if any(row.get(key) is not None for row in found)}
    best = {key: max(found, key=lambda row, key=key: _number(row.get(key))) for key in columns if key[:4] == "bbox"}
    heads = "".join(f'<th scope="col">{text}</th>' for text, _ in columns.values())
    lines = []
    for row in reversed(found[-MOST_EVALUATIONS:]):
        cells = []
        for key, (_, digits) in columns.items():
            text = DASH if row.get(key) is None else f"{row[key]:.{digits}f}".replace("-", "&minus;")
            cells.append(f"<td><b>{text}</b></td>" if best.get(key) is row else f"<td>{text}</td>")
        lines.append(f'<tr><th scope="row">{min(row["iteration"] + 1, max_iter)}</th>{"".join(cells)}</tr>')
    more = len(found) - len(lines)
    note = "AP in %, at its best in bold."
    if len(columns) > len(best):
        note += (
            " Top N, 2N: the share of best-regressed samples among so many highest-scoring predictions of an image "
            "with N objects. Spearman: the correlation of score and IoU. Error: of the score as an estimate of the IoU."
        )
    note += f" {more} earlier evaluations are in metrics.json." if more else ""
    return (
        f'<div class="scroll"><table class="dense"><thead><tr><th scope="col">iteration</th>{heads}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table></div><p class="faint">{note}</p>'
    )


def _curves(rows: Rows) -> Iterator[tuple[Callable[[], Figure], str]]:
    """The plots there is something for, each as a function that draws it, and what it says."""
    names = {name for row in rows for name in row}
    tasks = sorted(name.rpartition("/")[0] for name in names if name.endswith("/AP"))
    if tasks:
        wanted = {f"{task}/{ap}": _ap_label(task, ap) for task in tasks for ap in ("AP", "AP50", "AP75")}
        yield lambda: _lines(rows, wanted, "Average precision", "box AP (%)"), "Of the test images, by evaluation."
    if names & ALIGNMENT.keys():
        yield (
            lambda: _lines(rows, ALIGNMENT, "Scores and boxes", "share; correlation; error"),
            "How well scores rank the boxes that fit best, on a sample of the test images.",
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
        yield lambda: _lines(rows, {"lr": "lr"}, "Learning rate", "learning rate", "zero"), "Of most of the parameters."
    if "grad_norm" in names:
        yield (
            lambda: _lines(rows, {"grad_norm": "norm"}, "Norm of the gradients", "norm, before clipping", "log"),
            "Before it is clipped.",
        )
    if "time" in names:
        wanted = {"time": "all", "data_time": "waiting for data"}
        yield (
            lambda: _lines(rows, wanted, "Time of an iteration", "seconds", "zero"),
            "Waiting for data should be next to nothing; if not, more workers help.",
        )


def _ap_label(task: str, ap: str) -> str:
    return ap if task == "bbox" else f"{ap}, {task.removeprefix('bbox_').replace('_', ' ').replace('ema', 'EMA')}"


def _losses(names: set[str]) -> dict[tuple[str, str], dict[str, str]]:
    """`{(kind, branch): {layer: name}}` of detrex's names, such as `loss_class_dn_3`; the last layer last."""
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
    kinds, branches = list(KINDS), list(BRANCHES)
    return (
        branches.index(branch) if branch in branches else len(branches),
        branch,
        kinds.index(kind) if kind in kinds else len(kinds),
        kind,
    )


def _lines(rows: Rows, names: Mapping[str, str], title: str, y_label: str, scale: str = "free") -> Figure:
    """A curve per name that there are values of; `scale` is "free", "zero" (it begins there) or "log"."""
    with rc_context(PLOT_STYLE):
        figure, axes = _axes(title, y_label)
        drawn = [(text, points) for name, text in names.items() if (points := _series(rows, name))]
        for index, (text, points) in enumerate(drawn):
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
        elif scale == "zero":
            axes.set_ylim(bottom=0, top=1.08 * max((y for _, points in drawn for _, y in points), default=0) or 1)
        if len(drawn) > 1:
            figure.legend(loc="outside lower center", ncols=2 if len(drawn) > 2 else len(drawn))
    return figure


def _layer_lines(rows: Rows, by_layer: Mapping[str, str], title: str) -> Figure:
    """Light for the first decoder layer, dark for the last; the encoder is dashed."""
    with rc_context(PLOT_STYLE):
        figure, axes = _axes(title, "weighted loss")
        layers = [layer for layer in by_layer if layer != "encoder"]
        for layer, name in by_layer.items():
            points = _series(rows, name)
            if not points:
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


def _series(rows: Rows, name: str) -> list[tuple[int, float]]:
    """(iteration, value) where there is one; of more than `MOST_POINTS`, means of as many in a row as it takes."""
    points = [(row["iteration"], row[name]) for row in rows if np.isfinite(_number(row.get(name), np.nan))]
    if len(points) <= MOST_POINTS:
        return points
    return [tuple(block.mean(axis=0)) for block in np.array_split(np.array(points), MOST_POINTS)]


def _latest(rows: Rows, name: str) -> float | None:
    return next((row[name] for row in reversed(rows) if row.get(name) is not None), None)


def _number(value: float | None, otherwise: float = -np.inf) -> float:
    return otherwise if value is None else value


def _samples(progress: Progress) -> str:
    if not progress.samples:
        return ""
    figures = "".join(
        f'<figure><div class="pair">{_image(sample.truth, "jpeg", "Ground truth")}'
        f'{_image(sample.found, "jpeg", "Predictions")}</div><figcaption>{escape(sample.caption)}</figcaption></figure>'
        for sample in progress.samples
    )
    return f'<p class="faint">{escape(progress.samples_note)}</p><div class="plots">{figures}</div>'


def _alignment(progress: Progress) -> str:
    if progress.figures is None:
        return ""
    model = {"name": "matched predictions", "figures": progress.figures}
    plots = "".join(
        _plot(draw(), EXPLANATIONS[name])
        for name, draw in (
            ("joint_histogram", lambda: joint_histogram(model)),
            ("reliability", lambda: reliability_diagram([model])),
            ("iou_frequency", lambda: iou_frequency([model])),
        )
    )
    note = (
        f"On the detections of {progress.seen} test images with {progress.figures['objects']} objects, as the last "
        "evaluation had them: less likely predictions, which it leaves out, are not seen here, so figures differ a "
        "little from those of align-detr analyze, which also looks into the decoder layers."
    )
    return f'<p class="faint">{note}</p><div class="plots">{plots}</div>'


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>\n{content}" if content else ""


def _plot(figure: Figure, text: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return f'<figure>{_image(file.getvalue(), "png", text)}<figcaption>{escape(text)}</figcaption></figure>'


def _image(data: bytes, kind: str, text: str) -> str:
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{escape(text)}">'


EXTRA_STYLE = """
.tiles { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(8.6rem, 1fr)); margin: 1rem 0; }
.tiles div { background: var(--shade); border-radius: 4px; padding: .5rem .7rem; }
.tiles b { display: block; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles small { color: var(--faint); font-size: .8rem; line-height: 1.3; display: block; }
.dense th, .dense td { padding: .25rem .5rem; white-space: nowrap; }
.dense th:first-child { min-width: 4rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
details pre { background: var(--shade); padding: .8rem; overflow-x: auto; font-size: .78rem; line-height: 1.4; }
summary { cursor: pointer; }
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
$reload
<title>$title</title>
<style>
$style</style>
</head>
<body>
<h1>$title</h1>
<p>$lead</p>
<div class="tiles">
$tiles
</div>
$evaluations
$samples
$plots
$alignment
<h2>What runs where</h2>
<dl>
$facts
</dl>
<h2>Config</h2>
<details><summary>The config, with all overrides</summary><pre>$config</pre></details>
</body>
</html>
""")
