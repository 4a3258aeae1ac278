"""One HTML page with figures and plots of several models side by side. It is one file without links."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import NamedTuple

DASH = "&ndash;"


class Row(NamedTuple):
    """A line of the table: key of the figure, title, meaning, and which values are better."""

    key: str
    title: str
    meaning: str
    better: str = "higher"


GROUPS: dict[str, tuple[Row, ...]] = {
    "Best boxes": (
        Row("best_in_top_n", "best boxes in top N", "share among the N highest scores of an image with N objects"),
        Row("best_in_top_2n", "best boxes in top 2N", "the same for twice as many scores"),
        Row("best_iou", "mean IoU", "of the best boxes"),
        Row("best_score", "mean score", "of the best boxes", better=""),
    ),
    "Matched predictions": (
        Row("spearman", "Spearman correlation", "of score and IoU, by rank"),
        Row("pearson", "Pearson correlation", "of score and IoU, linear"),
        Row("matched_iou", "mean IoU", "with the object"),
        Row("matched_score", "mean score", "for the object's class", better=""),
        Row("expected_error", "expected error", "of the score as an estimate of the IoU, in bins", better="lower"),
        Row("absolute_error", "absolute error", "the same, prediction by prediction", better="lower"),
    ),
    "Decoder layers": (
        Row("same_query", "objects that keep their query", "from one layer to the next, mean over the layers"),
    ),
    "Encoder's features": (
        Row("discriminability", "discriminability", "area under the IoF-IoB curve; 0.5 is chance"),
    ),
}
AP_ROWS = (
    ("AP", lambda ap: ap["plain"].get("AP"), "box AP of the model's own scores, %"),
    ("AP50", lambda ap: ap["plain"].get("AP50"), "at IoU 0.5"),
    ("AP75", lambda ap: ap["plain"].get("AP75"), "at IoU 0.75"),
    ("aligned AP", lambda ap: ap["aligned"].get("AP"), "with each matched prediction's IoU in place of its score"),
    ("cost of misalignment", lambda ap: ap["cost"], "aligned AP less AP, points"),
)

EXPLANATIONS = {
    "best_regressed": "The best box for an object ought to be among the predictions that score highest.",
    "average_precision": "AP with each matched prediction's IoU in place of its score; the gap is lost to scores, "
    "wrong classes included.",
    "iou_frequency": "How well the predictions matched to objects are localised.",
    "reliability": "On the diagonal a score is the IoU it promises; below it, scores are too high.",
    "discriminability": "Share of the objects' area (IoF) and of the background's (IoB) where the encoder's features "
    "are longer than a threshold, for all thresholds.",
    "consistency": "Ground truths matched to the same query in a layer and the next.",
    "joint_histogram": "Matched predictions by score and IoU; near the dashed line the two agree.",
    "final_queries": "What the queries that end at an object were matched to before, their mean IoU with it, "
    "and how many others were better.",
}

STYLE = """\
:root { color-scheme: light; --ink: #1c1c1c; --faint: #5f5f5f; --line: #d9d9d9; --paper: #ffffff; --shade: #f4f4f2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 78rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
p { margin: .3rem 0; max-width: 48rem; }
.faint { color: var(--faint); font-size: .86rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child { text-align: left; font-weight: normal; min-width: 9rem; }
thead th:not(:first-child) { width: var(--share); }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; overflow-wrap: anywhere; }
tbody th[colspan] { padding-top: 1.1rem; font-weight: bold; background: none; }
td b { font-weight: 600; }
td small, th small { display: block; color: var(--faint); font-size: .8rem; font-weight: normal; line-height: 1.35; }
td small.clear { color: var(--ink); }
.range { white-space: nowrap; }
.range::before { content: "["; } .range::after { content: "]"; }
.plots, .models { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.models { grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
figure { margin: 0 0 1rem; max-width: 34rem; }
img { width: 100%; height: auto; display: block; border: 1px solid var(--line); border-radius: 4px; }
figcaption { color: var(--faint); font-size: .86rem; margin-top: .3rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .8rem; font-size: .86rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 45rem) {
  body { padding: 1rem .75rem 2rem; }
  .models { grid-template-columns: 1fr; }
  th, td { padding: .35rem .35rem; font-size: .9rem; }
  th:first-child { min-width: 6.5rem; }
  .range { font-size: .74rem; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
}
"""

HEAD = """<!DOCTYPE html>
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
"""

PAGE = Template(
    HEAD
    + """<h2>In numbers</h2>
<div class="scroll"><table style="--share: $share%; max-width: $width">
<thead><tr><th scope="col"></th>$heads</tr></thead>
<tbody>
$rows
</tbody>
</table></div>
<p class="faint">$note</p>
<h2>$shared_title</h2>
<div class="plots">
$shared
</div>
$by_model
<h2>What was run</h2>
<dl>
$runs
</dl>
</body>
</html>
"""
)


def render(report: Mapping, shared: Mapping[str, bytes], by_model: Sequence[Mapping[str, bytes]]) -> str:
    """The page.

    Args:
        report: content of alignment.json.
        shared: plots of all models as PNG files, by the names of `EXPLANATIONS`.
        by_model: plots of each model alone.
    """
    models = report["models"]
    alone = len(models) == 1
    return PAGE.substitute(
        reload="",
        style=STYLE,
        title=f"Scores and boxes on {escape(report['dataset'])}",
        lead=f"{report['images']} images with {report['objects']} objects, crowds left out. A detector is aligned if "
        "the boxes that fit best are those that score highest.",
        shared_title="Plots" if alone else "All models",
        width="48rem" if alone else "none",
        share=60 // (len(models) + alone),
        heads="".join(f'<th scope="col">{escape(model["name"]).replace("_", "_<wbr>")}</th>' for model in models),
        rows="\n".join(_rows(models)),
        note=_note(len(models), report["repeats"]),
        shared="\n".join(_figure(*plot) for plot in (shared | by_model[0] if alone else shared).items()),
        by_model="" if alone else _by_model(models, by_model),
        runs="\n".join(_runs(report)),
    )


def _by_model(models: Sequence[Mapping], by_model: Sequence[Mapping[str, bytes]]) -> str:
    """A column with the plots of each model."""
    sections = "\n".join(
        f"<section><h3>{escape(model['name'])}</h3>{''.join(_figure(*plot) for plot in plots.items())}</section>"
        for model, plots in zip(models, by_model, strict=True)
    )
    heading = "<h2>Model by model</h2>"
    return f'{heading}\n<div class="models" style="--columns: {len(models)}">\n{sections}\n</div>'


def _rows(models: Sequence[Mapping]) -> list[str]:
    lines = []
    for group, rows in GROUPS.items():
        lines.append(_group(group, len(models)))
        for row in rows:
            cells = [_cell(model, row.key, bool(index)) for index, model in enumerate(models)]
            arrow = {"higher": " &uarr;", "lower": " &darr;", "": ""}[row.better]
            lines.append(_line(row.title + arrow, row.meaning, cells))
    lines.append(_group("Average precision", len(models)))
    for title, value, meaning in AP_ROWS:
        values = [value(model["ap"]) for model in models]
        cells = [
            f"<td><b>{_text(v, 1)}</b>{_change(v, values[0], 1) if index else ''}</td>"
            for index, v in enumerate(values)
        ]
        lines.append(_line(title, meaning, cells))
    return lines


def _group(title: str, count: int) -> str:
    return f'<tr><th scope="colgroup" colspan="{count + 1}">{title}</th></tr>'


def _line(title: str, meaning: str, cells: Sequence[str]) -> str:
    return f'<tr><th scope="row">{title}<small>{meaning}</small></th>{"".join(cells)}</tr>'


def _cell(model: Mapping, key: str, compared: bool) -> str:
    low_high = model["intervals"][key]
    around = f'<small class="range">{_text(low_high[0], 3)}, {_text(low_high[1], 3)}</small>' if low_high else ""
    change = model["differences"][key] if compared else None
    if change is not None:
        bounds = change["interval"]
        clear = bounds is not None and (bounds[0] > 0 or bounds[1] < 0)
        kind, word = (' class="clear"', "clear") if clear else ("", "within noise")
        around += f"<small{kind}>{_signed(change['value'], 3)}, {word}</small>"
    return f"<td><b>{_text(model['figures'][key], 3)}</b>{around}</td>"


def _change(value: float | None, first: float | None, digits: int) -> str:
    return "" if value is None or first is None else f"<small>{_signed(value - first, digits)}</small>"


def _text(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "&minus;")


def _signed(value: float | None, digits: int) -> str:
    # Adding zero makes 0.0 of -0.0.
    return DASH if value is None else f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "&minus;")


def _note(models: int, repeats: int) -> str:
    text = (
        f"Under each figure: its 95 % interval over {repeats} resamples of the images. It shows how far the choice of "
        "images matters, not how far another training would differ. Arrows point to better values."
    )
    if models > 1:
        text += (
            " The last line is the difference from the first model on the same resamples: clear if its interval "
            "excludes zero, else within noise. AP has no intervals."
        )
    return text


def _figure(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    explanation = EXPLANATIONS[name]
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(explanation)}">'
        f"<figcaption>{escape(explanation)}</figcaption></figure>"
    )


def _runs(report: Mapping) -> list[str]:
    entries = [
        (model["name"], f"{model['config']}, {model['checkpoint'] or 'random weights'}") for model in report["models"]
    ]
    entries += report["environment"].items()
    return [f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries]
