"""A detector as a folder for the Hugging Face hub: weights with their config, and a model card."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig
from PIL import Image

from detrkit.config.exported import write_exported
from detrkit.runtime.extras import pip_install
from detrkit.runtime.files import atomic_write
from detrkit.runtime.text import plural
from detrkit.weights import hub

from .detections import Detections
from .network import Network
from .pytorch import PyTorchNetwork

WEIGHTS, CARD, CONFIG = "model.safetensors", "README.md", "config.json"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
MOST_CLASSES = 100  # on the card
METRIC = re.compile(r"bbox/AP(50|75|s|m|l)?$")
CARD_TEXT = """\
---
library_name: align-detr
pipeline_tag: object-detection
tags:
- object-detection
- detr
---

# {title}

{model} with {count}, trained with [Align-DETR](https://arxiv.org/abs/2304.07527)'s code base.

```python
from detrkit import Detector

detector = Detector.from_pretrained("{repository}")
for detections in detector(["street.jpg"]):
    print(detections.labels, detections.scores, detections.boxes)
```

Detections that score {threshold:.3g} or more are returned by default.
{metrics}
## Classes

{classes}
{pictures}"""


class Publishable(Protocol):
    """What is published of a `Detector`; see its attributes."""

    network: Network
    cfg: DictConfig | None
    weights: str
    class_names: list[str]
    score_threshold: float

    def __call__(self, pictures: Sequence[Any]) -> Iterable[Detections]: ...


def save_pretrained(
    detector: Publishable,
    folder: str | os.PathLike,
    *,
    repository: str = "",
    metrics: Mapping[str, float] | None = None,
    pictures: Sequence[Any] = (),
) -> Path:
    """Write a detector as a folder that `Detector.from_pretrained` reads.

    Args:
        folder: created if it is not there; files of these names in it are replaced.
        repository: "user/name" on the hub, for the card.
        metrics: for the card; by default the AP of the last evaluation in the training's folder.
        pictures: files, PIL images or arrays, on which the card shows detections.

    Returns:
        The folder, with model.safetensors, config.json and README.md.

    Raises:
        ValueError: the detector is an ONNX file, which has no weights to write; or an image cannot be read.
        OSError: a file cannot be written.
    """
    network, cfg = detector.network, detector.cfg
    if not isinstance(network, PyTorchNetwork) or cfg is None:
        raise ValueError(f"{detector.weights} is a graph without weights: publish what it was exported from")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_exported(folder / WEIGHTS, network.model.state_dict(), cfg, network.classes, detector.score_threshold)
    shown = [found.draw() for found in detector(pictures)] if pictures else []
    names = [f"detections_{number}.jpg" for number in range(1, len(shown) + 1)]
    for name, image in zip(names, shown, strict=True):
        _save(image, folder / name)
    labels = dict(enumerate(network.classes.names))
    about = {"library_name": "align-detr", "architecture": type(network.model).__name__, "id2label": labels}
    about["score_threshold"] = detector.score_threshold
    _write(folder / CONFIG, json.dumps(about, ensure_ascii=False, indent=2) + "\n")
    metrics = metrics_of_run(Path(detector.weights)) if metrics is None else metrics
    _write(folder / CARD, model_card(detector, repository or folder.resolve().name, metrics, names))
    return folder


def push_to_hub(
    detector: Publishable,
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    metrics: Mapping[str, float] | None = None,
    pictures: Sequence[Any] = (),
) -> str:
    """Upload a detector to the Hugging Face hub, with a model card.

    Args:
        repository: "user/name"; created if it is not there.
        private: whether a new repository is private.
        token: an access token; None for the one of `hf auth login`.
        metrics, pictures: see `save_pretrained`.

    Returns:
        The address of the repository.

    Raises:
        ValueError: the name is none, the package huggingface_hub is missing, or the detector has no weights.
        OSError: the upload failed.
    """
    if not REPOSITORY.fullmatch(repository):
        raise ValueError(f"{repository!r} is not the name of a repository: give USER/NAME")
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ValueError(f"uploading to the hub needs a package: {pip_install('hub')}") from error
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(detector, folder, repository=repository, metrics=metrics, pictures=pictures)
        api = HfApi(token=token)
        try:
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a detector")
        except Exception as error:  # of many classes, which change from release to release
            reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            raise OSError(f"cannot upload to {repository}: {reason}; `hf auth login` stores an access token") from error
    return str(address)


def pretrained_file(name: str | os.PathLike, revision: str | None = None) -> Path:
    """The weights of a folder of `save_pretrained`, or of a repository "user/name" of the hub, downloaded.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: this is neither a folder nor the name of a repository, or huggingface_hub is missing.
        OSError: the file cannot be downloaded.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(f"{folder} has no {WEIGHTS}: `align-detr push` writes it")
        return folder / WEIGHTS
    if not REPOSITORY.fullmatch(os.fspath(name)):
        raise ValueError(f"{name} is neither a folder nor the name of a repository: give USER/NAME")
    return hub.get(f"{hub.PREFIX}{os.fspath(name)}{f'@{revision}' if revision else ''}/{WEIGHTS}")


def metrics_of_run(weights: Path) -> dict[str, float]:
    """The AP of the last evaluation in the folder that weights lie in; {} without one."""
    file = weights.with_name("metrics.json")
    if not file.is_file():
        return {}
    for line in reversed(file.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            row = json.loads(line)
            found = {name.removeprefix("bbox/"): float(row[name]) for name in row if METRIC.match(name)}
        except (ValueError, TypeError):
            continue
        if found:
            return {name: value for name, value in found.items() if math.isfinite(value)}
    return {}


def model_card(detector: Publishable, repository: str, metrics: Mapping[str, float], pictures: Sequence[str]) -> str:
    """The card as Markdown; `pictures` are files beside it."""
    names = [name.replace("|", "\\|") for name in detector.class_names]
    more = f", and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else ""
    table = "".join(f"| {name} | {value:.2f} |\n" for name, value in metrics.items())
    return CARD_TEXT.format(
        title=repository.rpartition("/")[2],
        model=type(detector.network.model).__name__,
        count=plural(len(names), "class"),
        repository=repository,
        threshold=detector.score_threshold,
        metrics=f"\n## Metrics\n\n| on the validation images, % | |\n| --- | --- |\n{table}" if table else "",
        classes=", ".join(names[:MOST_CLASSES]) + more,
        pictures="\n## Detections\n\n" + "\n".join(f"![]({name})" for name in pictures) + "\n" if pictures else "",
    )


def _save(image: Image.Image, path: Path) -> None:
    with atomic_write(path) as file:
        image.convert("RGB").save(file, format="JPEG", quality=90)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
