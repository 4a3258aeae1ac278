"""The page of `explore`: its data as compact JSON, small copies of the images, and HTML that needs no server."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image
from tqdm import tqdm

from detrkit.analysis.errors import KINDS, MISSED
from detrkit.analysis.image_errors import ImageErrors
from detrkit.datasets.images import to_rgb
from detrkit.runtime.colors import class_colors
from detrkit.runtime.files import atomic_write

from .page import HEAD, STYLE

SIDE = 512  # the longer side of a small copy, pixels
QUALITY = 82  # of JPEG
NAMES = ("correct", *KINDS, "ignored", MISSED)  # of the page's kinds; those of detections are `errors.KINDS` plus 1
MEANINGS = {
    "correct": "finds an object of its class that no better detection has found",
    "classification": "on an object of another class",
    "localisation": "near an object of its class, but not on it",
    "both": "near an object of another class, but not on it",
    "duplicate": "on an object that a better detection has found",
    "background": "near no object",
    "ignored": "on a crowd: neither correct nor wrong",
    MISSED: "an object that no shown detection is on, and no localisation error is near",
}
PIXEL, SCORE, IOU = 10, 10_000, 1000  # parts of a unit in the page's whole numbers

BODY = """<form id="filters" autocomplete="off">
<label>Class <select id="class"></select></label>
<label>Score from <output id="score-shown"></output><input id="score" type="range" step="0.01"></label>
<label>IoU <input id="iou-low" type="number" min="0" max="1" step="0.05" value="0"> to
<input id="iou-high" type="number" min="0" max="1" step="0.05" value="1"></label>
<label>Sort by <select id="sort"></select></label>
<label>File <input id="name" type="search" placeholder="part of a name"></label>
<div id="kinds" role="group" aria-label="Kinds"></div>
<p id="count" class="faint" role="status"></p>
</form>
<main id="grid"></main>
<dialog id="large">
<div id="stage"><div id="picture"><img alt=""><svg></svg></div></div>
<aside>
<header><button id="previous" title="previous image (&larr;)">&larr;</button><span id="place"></span>
<button id="next" title="next image (&rarr;)">&rarr;</button>
<button id="close" title="close (Esc)">&times;</button></header>
<h3 id="file"></h3>
<p id="facts" class="faint"></p>
<p id="keys" class="faint">&larr; &rarr; image &middot; t ground truth &middot; d detections &middot; z zoom</p>
<ol id="boxes"></ol>
</aside>
</dialog>
<script type="application/json" id="data">$data</script>
<script>
$script
</script>
</body>
</html>
"""


@dataclass(frozen=True)
class Shown:
    """What the page shows.

    Attributes:
        title: of the page.
        root: the folder that file names are shown relative to.
        class_names: by class index.
        images: dataset dicts with the errors of their detections, in the order of the page.
        iou_threshold: that the detections were matched at.
        score_threshold: where the page's slider stands at first.
        min_score: where the slider begins.
        losses: by file name; None for a page without them.
    """

    title: str
    root: str
    class_names: Sequence[str]
    images: Sequence[tuple[dict, ImageErrors]]
    iou_threshold: float
    score_threshold: float
    min_score: float
    losses: Mapping[str, float] | None = None


def write_page(shown: Shown, path: Path) -> list[str]:
    """Write the page, and small copies of its images beside it.

    Returns:
        File names and reasons of the images that could not be read.

    Raises:
        ValueError: none could be read.
        OSError: a file cannot be written.
    """
    folder = path.with_name(f"{path.stem}_images")
    folder.mkdir(parents=True, exist_ok=True)
    names = [image["file_name"] for image, _ in shown.images]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        copied = pool.map(lambda name: small_copy(Path(name), folder), names)
        copies = list(tqdm(copied, "small copies", len(names), leave=False, disable=None))
    unreadable = [f"{name}: {copy}" for name, copy in zip(names, copies, strict=True) if isinstance(copy, str)]
    if len(unreadable) == len(names):
        raise ValueError(f"no image can be read; the first: {unreadable[0]}")
    small = [None if isinstance(copy, str) else address(copy, path) for copy in copies]
    with atomic_write(path) as file:
        file.write(render(page_data(shown, small, path)).encode())
    return unreadable


def small_copy(image: Path, folder: Path) -> Path | str:
    """A JPEG whose longer side has at most SIDE pixels, made unless it is there; or why the image cannot be read."""
    try:
        state = image.stat()
        name = hashlib.sha256(f"{image.resolve()}\0{state.st_mtime_ns}\0{state.st_size}".encode()).hexdigest()[:20]
        copy = folder / f"{name}.jpg"
        if copy.is_file():
            return copy
        with Image.open(image) as file:
            file.draft(None, (SIDE, SIDE))  # decodes large JPEGs at a fraction of their size
            pixels = Image.fromarray(to_rgb(file))
    except FileNotFoundError:
        return "there is no such image"
    except Exception as error:  # a damaged file may raise anything
        return " ".join(str(error).split()) or type(error).__name__
    pixels.thumbnail((SIDE, SIDE))
    with atomic_write(copy) as file:
        pixels.save(file, "JPEG", quality=QUALITY)
    return copy


def address(file: str | os.PathLike, page: Path) -> str:
    """The URL of a file as the page names it: relative to the page, if there is a way."""
    file, base = os.path.abspath(file), os.path.dirname(os.path.abspath(page))
    try:
        relative = os.path.relpath(file, base)
    except ValueError:  # another drive of Windows
        return Path(file).as_uri()
    return quote(relative.replace(os.sep, "/").encode(errors="surrogateescape"))


def page_data(shown: Shown, small: Sequence[str | None], page: Path) -> dict[str, Any]:
    """What the page's script reads: columns of whole numbers, see PIXEL, SCORE and IOU.

    The boxes of image i are those from `first[i]` to before `first[i + 1]`, as x, y, width and height; scores are
    rounded down. `about` is the number of an object in the same image.

    Args:
        small: URLs of the small copies; None for images that cannot be read.
    """
    dicts, errors = [image for image, _ in shown.images], [found for _, found in shown.images]
    names = [os.path.relpath(image["file_name"], shown.root).replace(os.sep, "/") for image in dicts]
    colors = class_colors(len(shown.class_names))
    images = {
        "name": [name if not name.startswith("..") else Path(name).name for name in names],
        "url": [address(image["file_name"], page) for image in dicts],
        "small": list(small),
        "width": [int(image["width"]) for image in dicts],
        "height": [int(image["height"]) for image in dicts],
    }
    if shown.losses is not None:
        images["loss"] = [_rounded(shown.losses.get(image["file_name"])) for image in dicts]
    return {
        "title": shown.title,
        "classes": list(shown.class_names),
        "colors": ["#{:02x}{:02x}{:02x}".format(*color) for color in colors],
        "kinds": list(NAMES),
        "meanings": [MEANINGS[name] for name in NAMES],
        "iou": shown.iou_threshold,
        "score": int(shown.score_threshold * 100 + 1e-9) / 100,
        "lowest": int(shown.min_score * 100 + 1e-9) / 100,
        "images": images,
        "detections": {
            "first": _first([len(e.scores) for e in errors]),
            "box": _boxes([e.boxes for e in errors]),
            "class": _column([e.classes for e in errors]),
            "score": _column([e.scores for e in errors], SCORE),
            "kind": _column([e.kinds + 1 for e in errors]),
            "iou": _column([e.iou for e in errors], IOU),
            "about": _column([e.about for e in errors]),
        },
        "objects": {
            "first": _first([len(e.gt_classes) for e in errors]),
            "box": _boxes([e.gt_boxes for e in errors]),
            "class": _column([e.gt_classes for e in errors]),
            "crowd": _column([e.is_crowd for e in errors]),
            "found": _column([e.found for e in errors], SCORE),
            "seen": _column([e.seen for e in errors], SCORE),
        },
    }


def _first(counts: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(counts, dtype=int).tolist()]


def _column(parts: Sequence[np.ndarray], scale: int = 1) -> list[int]:
    return np.floor(np.concatenate(parts) * scale + 1e-3).astype(int).tolist()


def _boxes(parts: Sequence[np.ndarray]) -> list[int]:
    corners = np.concatenate(parts).reshape(-1, 4)
    sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    return np.rint(sides * PIXEL).astype(int).ravel().tolist()


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 4)


def render(data: Mapping[str, Any]) -> str:
    """The page as HTML. Names in it cannot end the script: "<" is written as an escape of JSON."""
    here = Path(__file__)
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    # Lone surrogates, of file names that are no text, cannot be encoded.
    text = text.encode("utf-8", "replace").decode()
    return Template(HEAD + BODY).substitute(
        reload="",
        title=escape(data["title"]),
        style=STYLE + here.with_name("explore.css").read_text(encoding="utf-8"),
        lead="Solid boxes are detections, dashed boxes are objects of the ground truth. Boxes that do not fit the "
        "filters are pale. The keys &larr; &rarr; &uarr; &darr; move between images, Enter opens one.",
        data=text,
        script="\n".join(here.with_name(name).read_text(encoding="utf-8") for name in SCRIPTS),
    )


SCRIPTS = ("explore_filter.js", "explore.js")
