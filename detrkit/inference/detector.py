"""A trained detector for use from Python."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from detrkit.config.test_augmentation import set_tta
from detrkit.datasets.classes import Classes
from detrkit.runtime.scores import checked_score
from detrkit.runtime.soft_nms import checked_threshold, soft_nms

from .detections import Detections
from .network import Network, Predictions
from .pictures import CHANNEL_ORDERS, Picture, all_of, name_of, read_picture, reason_of
from .pytorch import PyTorchNetwork
from .runtimes import is_graph, open_graph
from .sources import find_source, stored_threshold
from .tiles import Tiles, detect_tiles

logger = logging.getLogger(__name__)

SCORE_THRESHOLD = 0.3  # for weights without a chosen threshold
WINDOW = 4  # batches whose images are read before the first is run, so that those of one size come together


class Detector:
    """Detect objects in images.

        detector = Detector("output/align_detr_tiny")
        for found in detector(["street.jpg", array, pil_image]):
            print(found.labels, found.scores, found.boxes)

    Args:
        source: `zoo:NAME`, the folder of a training, or a file of `align-detr export`. Of a folder, `config.yaml` and
            `model_final.pth` are taken, else `model_best.pth`, else the newest checkpoint. Nothing in them is run. An
            ONNX file goes to ONNX Runtime, an `.xml` file to OpenVINO.
        which: the "best" or the "final" checkpoint of the folder; a training that was stopped has no final one. The log
            and the attribute `weights` say which was taken.
        config: instead, a config: a `.py` file (which is run), a `.yaml` file, or a config as LazyConfig loads it.
        weights: a checkpoint (`.pth`), weights alone (`.pth`, `.safetensors`) or `zoo:NAME`; beside `source`, in place
            of its own. They must cover the whole model. Averaged weights are used where the config has them.
        device: "cuda", "cuda:1", "mps" or "cpu"; "auto" for the first of these that is there.
        dtype: "float32", or "float16" or "bfloat16" for mixed precision, as in training with `train.amp`: on a CPU
            only where it has units for it, as float32 is faster otherwise. ONNX Runtime computes in the types of the
            file.
        class_names: of the model's outputs, if not those that the checkpoint or the config's dataset knows.
        soft_nms: IoU above which detections that overlap a better one of their class lose score; 0: off. The default is
            the config's `train.soft_nms`, which exported files keep.
        test_aug: test-time augmentation: True, False, or options such as `{"min_sizes": [640, 800]}`; see
            `detrkit.config.test_augmentation.TTAOptions`. The default is the config's `train.test_aug`, which exported
            files keep.
        tile: side in pixels of the tiles that images larger than it are divided into, for small objects; they are
            searched besides the whole image. None: whole images alone.
        overlap: of neighbouring tiles, as a share of `tile`; see `detrkit.inference.tiles`.
        overrides: `key=value` that `config` was changed by, which settings that belong to the weights do not replace.
        runtime: of an `.onnx` or `.xml` file: "onnxruntime" or "openvino".

    Attributes:
        score_threshold: the default of calls: the one stored with the weights, else SCORE_THRESHOLD. It was chosen on
            the validation images for the highest F1; see `align-detr errors`.

    Raises:
        FileNotFoundError: a file is not there.
        ImportError: a package is not there that the file needs.
        ValueError: it cannot be used; one line says why.
    """

    def __init__(
        self,
        source: str | os.PathLike | None = None,
        *,
        which: str | None = None,
        config: str | os.PathLike | DictConfig | None = None,
        weights: str | os.PathLike | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = "float32",
        class_names: Sequence[str] | None = None,
        soft_nms: float | None = None,
        test_aug: bool | Mapping[str, Any] | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
        overrides: Sequence[str] = (),
        runtime: str | None = None,
    ):
        self._tiles = None if tile is None else Tiles(tile, overlap)
        named = Classes.named(class_names) if class_names else None
        self._network: Network
        self._cfg: DictConfig | None = None
        if is_graph(source):
            if any(value is not None for value in (config, weights, which)):
                raise ValueError(f"{source} has config and weights in it: give none of them")
            if test_aug:
                raise ValueError(f"{source} is a graph of one pass: test_aug needs the detector in PyTorch")
            self._network = open_graph(source, runtime, device, dtype)
            threshold = self._network.score_threshold
            self._weights = os.fspath(source)
            if named:
                self._network.classes = named.for_outputs(len(self._network.classes.names))
        else:
            if runtime is not None:
                raise ValueError(f"runtime={runtime!r} is for graphs (.onnx, .xml), and PyTorch runs this detector")
            cfg, weights, known = find_source(source, config, weights, overrides, which)
            if test_aug is not None:
                set_tta(cfg, test_aug)
            self._weights = weights
            self._cfg = cfg
            threshold = stored_threshold(weights)
            self._network = PyTorchNetwork(cfg, weights, named or known, device, dtype, overrides)
        self._soft_nms = self._network.soft_nms if soft_nms is None else checked_threshold(soft_nms, "soft_nms")
        self.score_threshold = SCORE_THRESHOLD if threshold is None else threshold

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, *, revision: str | None = None, **options: Any) -> Detector:
        """Load a detector of the Hugging Face hub, or of a folder that `save_pretrained` wrote.

        Args:
            name: "user/name", or the folder.
            revision: a branch, tag or commit on the hub.
            options: as for `Detector`: device, dtype, class_names.

        Raises:
            FileNotFoundError: the folder has no detector.
            ValueError: the name is none, or the package huggingface_hub is missing.
            OSError: it cannot be downloaded.
        """
        from .publishing import pretrained_file

        return cls(pretrained_file(name, revision), **options)

    def save_pretrained(self, folder: str | os.PathLike, **options: Any) -> Path:
        """Write a folder for `from_pretrained`; see `detrkit.inference.publishing.save_pretrained`."""
        from .publishing import save_pretrained

        return save_pretrained(self, folder, **options)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload to the Hugging Face hub; see `detrkit.inference.publishing.push_to_hub`. Returns the address."""
        from .publishing import push_to_hub

        return push_to_hub(self, repository, **options)

    @property
    def network(self) -> Network:
        """The network without preprocessing; `.model` of a PyTorch one is the module."""
        return self._network

    @property
    def cfg(self) -> DictConfig | None:
        """The config; None for a graph."""
        return self._cfg

    @property
    def classes(self) -> Classes:
        """The classes of the model's outputs."""
        return self._network.classes

    @property
    def weights(self) -> str:
        """The file of weights that was loaded."""
        return self._weights

    @property
    def class_names(self) -> list[str]:
        """Of the model's outputs, in their order; numbers where nothing is known of them."""
        return list(self._network.classes.names)

    def __call__(
        self,
        pictures: Picture | Iterable[Picture],
        score_threshold: float | None = None,
        *,
        batch_size: int = 4,
        channel_order: str = "RGB",
        skip_unreadable: bool = False,
    ) -> Iterator[Detections]:
        """Detect objects in one or several images; return the detections in their order.

        Images are read as the iterator advances, at most 4 times `batch_size` at once; those among them that have one
        size go through the network together, so neighbours do not change what is found. With `batch_size=1` each is
        done as it comes, as a camera's are to be.

        Args:
            pictures: files, PIL images and uint8 arrays (H, W, 3), (H, W, 4) or (H, W). Files and PIL images are turned
                as their EXIF data say; boxes are those of the upright image.
            score_threshold: leave out what scores less; None for the attribute `score_threshold`.
            channel_order: of arrays: "RGB", or "BGR" as OpenCV reads them.
            skip_unreadable: leave out images that cannot be read, with a warning in the log, instead of ending.

        Raises:
            ValueError: an argument is out of range; or an image cannot be read: the message names it, and detections of
                earlier images have been returned.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: at least 1, please")
        if channel_order not in CHANNEL_ORDERS:
            raise ValueError(f"channel_order={channel_order!r} is none of {', '.join(CHANNEL_ORDERS)}")
        threshold = self.score_threshold if score_threshold is None else score_threshold
        checked_score(threshold, "score_threshold")
        return self._in_windows(all_of(pictures), threshold, batch_size, channel_order, skip_unreadable)

    def _in_windows(
        self,
        pictures: Iterable[Picture],
        score_threshold: float,
        batch_size: int,
        channel_order: str,
        skip_unreadable: bool,
    ) -> Iterator[Detections]:
        batch_size = min(batch_size, self._network.most_at_once or batch_size)
        numbered = enumerate(pictures)
        read_ahead = WINDOW * batch_size if batch_size > 1 and self._tiles is None else 1
        while window := list(islice(numbered, read_ahead)):
            read: list[tuple[str, np.ndarray]] = []
            problem = None
            for index, picture in window:
                name = name_of(picture, index)
                try:
                    read.append((name, read_picture(picture, channel_order)))
                except Exception as error:  # Pillow's decoders raise many kinds on broken files
                    problem = ValueError(f"{name} cannot be read: {reason_of(error)}")
                    if not skip_unreadable:
                        problem.__cause__ = error
                        break
                    logger.warning("left out: %s", problem)
            all_found = self._found_in([pixels for _, pixels in read], batch_size)
            for (name, pixels), found in zip(read, all_found, strict=True):
                keep = (found.scores >= score_threshold) & np.array(self._network.classes.used)[found.classes]
                yield Detections(name, pixels, *(values[keep] for values in found), self._network.classes)
            if problem and not skip_unreadable:
                raise problem

    def _found_in(self, pictures: Sequence[np.ndarray], batch_size: int) -> Sequence[Predictions]:
        if self._tiles is None:
            return self._predict(pictures, batch_size)
        predict = partial(self._predict, batch_size=batch_size)
        return [detect_tiles(predict, pixels, self._tiles, batch_size) for pixels in pictures]

    def _predict(self, pictures: Sequence[np.ndarray], batch_size: int) -> list[Predictions]:
        images = [self._network.prepare(pixels) for pixels in pictures]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(index)
        found: dict[int, Predictions] = {}
        for indices in by_size.values():
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                sizes = [pictures[index].shape[:2] for index in batch]
                found |= zip(batch, self._network.detect([images[i] for i in batch], sizes), strict=True)
        return [self._softened(found[index]) for index in range(len(images))]

    def _softened(self, found: Predictions) -> Predictions:
        if not self._soft_nms:
            return found
        order, scores = soft_nms(*found, self._soft_nms)
        return Predictions(found.boxes[order], scores, found.classes[order])
