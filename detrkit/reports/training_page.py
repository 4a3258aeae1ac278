"""One HTML page on a training: AP, losses by decoder layer, predictions. It is one file without links."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from html import escape
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import NamedTuple

from matplotlib.figure import Figure

from detrkit.analysis.plots import iou_frequency, joint_histogram, reliability_diagram

from .errors_section import THRESHOLD_TEXT, errors_tables, threshold_plot
from .page import DASH, EXPLANATIONS, HEAD, STYLE
from .training_curves import ALIGNMENT, Rows, curves, number, series

DPI = 130
MOST_EVALUATIONS = 15  # in the table
RELOAD_SECONDS = 60
CLASS_AP = "bbox/AP-"  # begins the names of metrics of single classes
AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
ALIGNMENT_HEADS = dict(zip(ALIGNMENT, ("top N", "top 2N", "Spearman", "error"), strict=True))


class Sample(NamedTuple):
    """An image of the evaluation: ground truth and predictions as JPEGs, and a caption."""

    truth: bytes
    predictions: bytes
    caption: str


@dataclass
class Progress:
    """What the page shows.

    Attributes:
        rows: of metrics.json, in order of `iteration`; see `read_metrics`.
        written: date and time.
        stopped: whether the training ended before `max_iter`.
        kept: sections of an earlier page by title, for those of which there is nothing new; see `read_sections`.
        config: the config as YAML.
        samples_note: what `samples` show.
        figures: `detrkit.analysis.summarize` of the last evaluation's detections; None before there are any.
        seen: number of images in `figures`.
        errors: `summarize_errors` of the same detections.
        facts: name and text of command, device, versions.
    """

    name: str
    iteration: int
    max_iter: int
    rows: Rows
    written: str
    stopped: bool = False
    kept: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    samples: Sequence[Sample] = ()
    samples_note: str = ""
    figures: Mapping | None = None
    seen: int = 0
    errors: Mapping | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """Read a metrics.json, in order of iterations.

    If a run was resumed from an earlier iteration, the later rows replace the earlier ones. Incomplete lines are left
    out.
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


def read_sections(path: Path) -> dict[str, str]:
    """The sections of a page by title; {} if there is no such file."""
    if not path.is_file():
        return {}
    _, *parts = re.split(r"<h2>(.*?)</h2>\n", path.read_text(encoding="utf-8", errors="replace"))
    return {title: content.rstrip("\n") for title, content in zip(parts[::2], parts[1::2], strict=True)}


def render(progress: Progress) -> str:
    """The page as HTML."""
    is_over = progress.stopped or progress.iteration >= progress.max_iter
    plots = "\n".join(_plot(draw(), text) for draw, text in curves(progress.rows))
    evaluations = _evaluations(progress.rows, progress.max_iter) + _classes(progress.rows, progress.max_iter)
    return PAGE.substitute(
        title=f"Training of {escape(progress.name)}",
        reload="" if is_over else f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">',
        style=STYLE + EXTRA_STYLE,
        lead=_lead(progress),
        tiles="\n".join(f"<div><b>{value}</b><small>{name}</small></div>" for name, value in _tiles(progress)),
        evaluations=_section("Evaluations", evaluations),
        plots=_section("Curves", f'<div class="plots">{plots}</div>' if plots else ""),
        samples=_section("Predictions beside ground truth", _samples(progress), progress.kept),
        alignment=_section("Scores and boxes", _alignment(progress), progress.kept),
        errors=_section("Threshold and errors", _errors(progress), progress.kept),
        facts="\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in progress.facts.items()),
        config=escape(progress.config),
    )


def _lead(progress: Progress) -> str:
    if progress.iteration >= progress.max_iter:
        return f"All {progress.max_iter} iterations are done. Written {escape(progress.written)}."
    share = f"{progress.iteration} of {progress.max_iter} ({progress.iteration / progress.max_iter:.0%})"
    written = escape(progress.written)
    if progress.stopped:
        return f"Stopped at iteration {share}. Written {written}; --resume goes on."
    left = _latest(progress.rows, "eta_seconds")
    eta = "" if left is None else f", when about {timedelta(seconds=round(left))} were left"
    return (
        f"Iteration {share}. Written {written}{eta}. Each evaluation writes this page anew, and it reloads every "
        "minute; if that time is long past, the training was killed."
    )


def _tiles(progress: Progress) -> Iterator[tuple[str, str]]:
    rows = progress.rows
    points = series(rows, "bbox/AP")
    if points:
        best = max(points, key=lambda point: point[1])
        yield "box AP, %", f"{points[-1][1]:.1f}"
        yield f"best AP, iteration {min(best[0] + 1, progress.max_iter)}", f"{best[1]:.1f}"
    for name, title, form in (
        ("alignment/best_in_top_n", "best boxes in top N (see Evaluations)", "{:.2f}"),
        ("total_loss", "total loss", "{:.3g}"),
        ("lr", "learning rate", "{:.2g}"),
        ("time", "seconds per iteration", "{:.3g}"),
        ("data_time", "seconds waiting for data, per iteration", "{:.2g}"),
    ):
        value = _latest(rows, name)
        if value is not None:
            yield title, form.format(value)


def _evaluations(rows: Rows, max_iter: int) -> str:
    """A table with a line per evaluation, newest first; iterations are counted from 1."""
    evaluations = [row for row in rows if row.get("bbox/AP") is not None]
    if not evaluations:
        return ""
    columns = {f"bbox/{name}": (name, 1) for name in AP_NAMES}
    columns |= {key: (text, 2) for key, text in ALIGNMENT_HEADS.items()}
    columns = {key: value for key, value in columns.items() if series(evaluations, key)}
    best = {key: _best(evaluations, key) for key in columns if key.startswith("bbox/")}
    heads = "".join(f'<th scope="col">{text}</th>' for text, _ in columns.values())
    lines = []
    for row in reversed(evaluations[-MOST_EVALUATIONS:]):
        cells = []
        for key, (_, digits) in columns.items():
            text = _cell(row.get(key), digits)
            cells.append(f"<td><b>{text}</b></td>" if best.get(key) is row else f"<td>{text}</td>")
        lines.append(f'<tr><th scope="row">{min(row["iteration"] + 1, max_iter)}</th>{"".join(cells)}</tr>')
    more = len(evaluations) - len(lines)
    note = f"AP in %, the best in bold; {DASH}: no objects of that kind."
    if len(columns) > len(best):
        note += (
            " Top N: the share of objects whose best box is among the N highest scores of an image with N objects; top "
            "2N: among twice as many. Spearman: the rank correlation of score and IoU. Error: the mean difference of "
            "score and IoU."
        )
    note += f" {more} earlier evaluations are in metrics.json." if more else ""
    return (
        f'<div class="scroll"><table class="dense"><thead><tr><th scope="col">iteration</th>{heads}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table></div><p class="faint">{note}</p>'
    )


def _latest(rows: Rows, name: str) -> float | None:
    return next((row[name] for row in reversed(rows) if row.get(name) is not None), None)


def _best(evaluations: Rows, name: str) -> Mapping | None:
    """The row with the highest value of a metric; None if no value is shown above 0.0."""
    best = max(evaluations, key=lambda row: number(row.get(name)))
    return best if number(best.get(name)) >= 0.05 else None


def _cell(value: float | None, digits: int) -> str:
    """A number, or a dash for None and values that are not finite."""
    return DASH if number(value) == -math.inf else f"{value:.{digits}f}".replace("-", "&minus;")


def _classes(rows: Rows, max_iter: int) -> str:
    """AP of each class, in the last evaluation and at its best; "" with a single class."""
    evaluations = [row for row in rows if row.get("bbox/AP") is not None]
    names = [name for name in (evaluations[-1] if evaluations else ()) if name.startswith(CLASS_AP)]
    if len(names) < 2:
        return ""
    lines = []
    for name in sorted(names, key=lambda name: number(evaluations[-1][name]), reverse=True):
        best = _best(evaluations, name)
        at = "" if best is None else f" <small>{min(best['iteration'] + 1, max_iter)}</small>"
        lines.append(
            f'<tr><th scope="row">{escape(name.removeprefix(CLASS_AP))}</th>'
            f"<td>{_cell(evaluations[-1][name], 1)}</td><td>{_cell(best and best[name], 1)}{at}</td></tr>"
        )
    heads = '<th scope="col">class</th><th scope="col">AP</th><th scope="col">best AP <small>iteration</small></th>'
    return (
        f'<h3>AP by class</h3><div class="classes scroll"><table class="dense"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _samples(progress: Progress) -> str:
    if not progress.samples:
        return ""
    figures = "".join(
        f'<figure><div class="pair">{_zoom(sample.truth, "Ground truth")}'
        f"{_zoom(sample.predictions, 'Predictions')}</div>"
        f"<figcaption>{escape(sample.caption)}</figcaption></figure>"
        for sample in progress.samples
    )
    return f'<p class="faint">{escape(progress.samples_note)}</p><div class="samples">{figures}</div>'


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
        f"From the detections of the last evaluation on {progress.seen} test images with "
        f"{progress.figures['objects']} objects. `align-detr analyze` also counts the predictions that an evaluation "
        "leaves out, and measures all decoder layers, so its figures differ a little."
    )
    return f'<p class="faint">{note}</p><div class="plots">{plots}</div>'


def _errors(progress: Progress) -> str:
    if progress.errors is None:
        return ""
    plot = _plot(threshold_plot(progress.errors), THRESHOLD_TEXT)
    return f'{errors_tables(progress.errors)}<div class="plots">{plot}</div>'


def _section(title: str, content: str, kept: Mapping[str, str] = MappingProxyType({})) -> str:
    content = content or kept.get(title, "")
    return f"<h2>{title}</h2>\n{content}" if content else ""


def _plot(figure: Figure, text: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return f"<figure>{_image(file.getvalue(), 'png', text)}<figcaption>{escape(text)}</figcaption></figure>"


def _zoom(data: bytes, text: str) -> str:
    """A JPEG that a click shows as large as the window."""
    label = f"{text}: click to enlarge"
    return f'<label class="zoom"><input type="checkbox" aria-label="{label}">{_image(data, "jpeg", label)}</label>'


def _image(data: bytes, kind: str, text: str) -> str:
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{escape(text)}">'


EXTRA_STYLE = """
.tiles { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(8.6rem, 1fr)); margin: 1rem 0; }
.tiles div { background: var(--shade); border-radius: 4px; padding: .5rem .7rem; }
.tiles b { display: block; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles small { color: var(--faint); font-size: .8rem; line-height: 1.3; display: block; }
.dense th, .dense td { padding: .25rem .5rem; white-space: nowrap; }
.dense th:first-child { min-width: 4rem; }
.dense td small, .dense th small { display: inline; }
.classes { max-width: 30rem; }
.samples { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); }
.samples figure { max-width: none; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.zoom { cursor: zoom-in; }
.zoom input { position: absolute; opacity: 0; }
.zoom input:focus-visible + img { outline: 3px solid #123c69; }
.zoom input:checked + img { position: fixed; inset: 0; z-index: 1; width: 100vw; height: 100vh; object-fit: contain;
  background: #000d; border: 0; cursor: zoom-out; }
details pre { background: var(--shade); padding: .8rem; overflow-x: auto; font-size: .78rem; line-height: 1.4; }
summary { cursor: pointer; }
"""

PAGE = Template(
    HEAD
    + """<div class="tiles">
$tiles
</div>
$evaluations
$samples
$plots
$alignment
$errors
<h2>Command and versions</h2>
<dl>
$facts
</dl>
<h2>Config</h2>
<details><summary>The config, with all overrides</summary><pre>$config</pre></details>
</body>
</html>
"""
)
