"""Detectors run by PyTorch."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T
from omegaconf import DictConfig

from detrkit.config.test_augmentation import tta_options
from detrkit.datasets.classes import Classes
from detrkit.runtime.device import resolve_device
from detrkit.runtime.precision import autocast_is_faster
from detrkit.runtime.soft_nms import checked_threshold
from detrkit.training.loading import load_detector
from detrkit.training.test_augmentation import with_original_images, with_tta

from .float64 import Float64
from .network import Predictions

DTYPES = ("float32", "float16", "bfloat16")
logger = logging.getLogger(__name__)


class PyTorchNetwork:
    """A config's model with its weights, and its test-time augmentation; see `Network`.

    Args:
        cfg: as for `align-detr train`; left as it is.
        weights: see `load_detector`.
        classes: None: numbered.
        device: see `Detector`.
        dtype: one of DTYPES or of PyTorch's types of these names; float32 instead, with a warning, where a CPU is
            faster so.
        overrides: see `load_detector`.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: they are not of this model; the config lacks something; no such device or type.
    """

    most_at_once = None

    def __init__(
        self,
        cfg: DictConfig,
        weights: str,
        classes: Classes | None,
        device: str,
        dtype: str | torch.dtype,
        overrides: Sequence[str] = (),
    ):
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ValueError(f"dtype={dtype} is none of {', '.join(DTYPES)}")
        self._dtype = getattr(torch, name)
        mapper = None if "dataloader" not in cfg else cfg.dataloader.get("test", {}).get("mapper")
        if "model" not in cfg or "train" not in cfg or mapper is None:
            raise ValueError("the config needs model, train and dataloader.test.mapper, as a training's has them")
        cfg = copy.deepcopy(cfg)
        cfg.train.device = resolve_device(device, "device")
        self.tta = tta_options(cfg)
        self._cfg = cfg
        mapper = (with_original_images(cfg) if self.tta else cfg).dataloader.test.mapper
        self._augmentations = T.AugmentationList(instantiate(mapper.augmentation))
        self._is_rgb = mapper.get("img_format", "RGB") == "RGB"
        self.soft_nms = checked_threshold(cfg.train.get("soft_nms"), "train.soft_nms")
        self.model = load_detector(cfg, weights, overrides=overrides)
        self._device = torch.device(cfg.train.device)
        if self._dtype != torch.float32 and not autocast_is_faster(self._dtype, self._device):
            logger.warning("This CPU has no units for %s: float32 is faster, and used instead", name)
            self._dtype = torch.float32
        count = cfg.model.num_classes
        self.classes = classes.for_outputs(count) if classes else Classes.numbered(count)

    def in_float64(self) -> PyTorchNetwork:
        """The same network in float64, see `Float64`; two to three times as slow."""
        other = copy.copy(self)
        other.model, other._dtype = copy.deepcopy(self.model).double(), torch.float64
        return other

    def _precision(self) -> AbstractContextManager:
        if self._dtype == torch.float64:
            return Float64()
        return nullcontext() if self._dtype == torch.float32 else torch.autocast(self._device.type, self._dtype)

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        augmented = T.AugInput(pixels if self._is_rgb else np.ascontiguousarray(pixels[..., ::-1]))
        self._augmentations(augmented)
        return np.ascontiguousarray(augmented.image.transpose(2, 0, 1))

    @torch.no_grad()
    def detect(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Predictions]:
        batch = [
            {"image": torch.from_numpy(image), "height": height, "width": width}
            for image, (height, width) in zip(images, sizes, strict=True)
        ]
        with self._precision():
            results = with_tta(self._cfg, self.model, self.tta)(batch)
        return [
            Predictions(
                found.pred_boxes.tensor.float().numpy(), found.scores.float().numpy(), found.pred_classes.numpy()
            )
            for found in (result["instances"].to("cpu") for result in results)
        ]
