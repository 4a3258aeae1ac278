"""The part of a training's page about the score threshold and errors by kind."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

from detrkit.analysis.plots import LOOKS, SIZE, STYLE

from .page import DASH

MOST_CLASSES = 20  # in the confusion matrix
THRESHOLD_TEXT = (
    "Precision, recall and F1 of all classes over the score threshold, at IoU 0.5. The vertical line is the threshold "
    "of the highest F1."
)


def threshold_plot(errors: Mapping) -> Figure:
    """Precision, recall and F1 over the threshold; `errors` is of `summarize_errors`."""
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        axes = figure.add_subplot()
        curve = errors["curve"]
        for (name, key), look in zip(
            (("precision", "precision"), ("recall", "recall"), ("F1", "f1")), LOOKS, strict=False
        ):
            values = [float("nan") if value is None else value for value in curve[key]]
            axes.plot(curve["thresholds"], values, look.line, color=look.color, label=name)
        if errors["score_threshold"] is not None:
            axes.axvline(errors["score_threshold"], color="#666666", linewidth=1)
        axes.set(xlabel="score threshold", xlim=(0, 1), ylim=(0, 1.02), title="Choosing a threshold")
        axes.legend()
    return figure


def errors_tables(errors: Mapping) -> str:
    """Thresholds by class, errors by kind, and the confusion matrix of a summary, as HTML."""
    return _lead(errors) + _classes(errors) + _kinds(errors) + _confusion(errors)


def _lead(errors: Mapping) -> str:
    images = f"From the detections of the last evaluation on {errors['images']} test images. "
    if errors["score_threshold"] is None:
        return f'<p class="faint">{images}No detection is correct, so there is no threshold to choose.</p>'
    return (
        f'<p class="faint">{images}At the threshold of the highest F1, {errors["score_threshold"]:.3g}, precision is '
        f"{errors['precision']:.2f} and recall {errors['recall']:.2f}. It is stored in errors.json and in exported "
        "files, as the default of Detector and demo. <code>align-detr errors</code> counts on all test images.</p>"
    )


def _classes(errors: Mapping) -> str:
    keys = ("score_threshold", "precision", "recall", "f1")
    rows = [
        (part["name"], [str(part["objects"]), _percent(part["AP"]), *(_number(part[key]) for key in keys)])
        for part in (*errors["classes"], {**errors, "name": "all"})
        if part["objects"]
    ]
    heads = ("class", "objects", "AP50, %", "threshold", "precision", "recall", "F1")
    return f"<h3>Best threshold by class</h3>{_table(heads, rows)}"


def _percent(share: float | None) -> str:
    return DASH if share is None else f"{100 * share:.1f}"


def _kinds(errors: Mapping) -> str:
    rows = [
        (name, [str(entry["count"]), _percent(entry["AP_cost"])])
        for name, entry in errors["errors"].items()
    ]
    note = (
        "Count: errors at the threshold. Cost: how many points AP50 rises if this kind alone is mended. Kinds as in "
        "TIDE (arXiv 2008.08115)."
    )
    return f'<h3>Errors by kind</h3>{_table(("error", "count", "cost, AP50"), rows)}<p class="faint">{note}</p>'


def _confusion(errors: Mapping) -> str:
    names, matrix = errors["confusion"]["names"], errors["confusion"]["matrix"]
    if len(names) > MOST_CLASSES:
        return ""
    rows = [(name, [str(count or "·") for count in counts]) for name, counts in zip(names, matrix, strict=True)]
    note = "Rows: true classes. Columns: detected classes, at the threshold."
    return f'<h3>Confusion matrix</h3>{_table(("", *names), rows)}<p class="faint">{note}</p>'


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def _table(heads: tuple[str, ...], rows: list[tuple[str, list[str]]]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    return (
        '<div class="scroll"><table class="dense" style="width: auto">'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
