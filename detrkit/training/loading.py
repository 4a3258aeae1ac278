"""Load a trained detector from its config and weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detrex.modeling import ema
from omegaconf import DictConfig
from torch import nn

from detrkit.config.load import call_parameters
from detrkit.runtime.device import resolve_device
from detrkit.runtime.text import plural
from detrkit.runtime.weight_files import is_remote
from detrkit.weights import prepare_config

from .checkpoints import SafeCheckpointer
from .training_parts import drop_training_parts, is_training_part

CLASS_HEADS = re.compile(r"(^|\.)class_embed(\.\d+)?\.(weight|bias)$")  # one row for each class


class WholeModelCheckpointer(SafeCheckpointer):
    """A checkpointer that refuses weights which do not cover the model, and averaged weights of another model.

    Otherwise the results would come from untrained weights.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load `path`; "" loads nothing.

        Raises:
            ValueError: a tensor of the model is not in the file, or has another shape there.
        """
        self._source = path
        rest = super().load(path, *args, **kwargs)
        if "ema_state" in self.checkpointables:
            averaged = self.checkpointables["ema_state"].state
            ours = self.model.state_dict()
            self._refuse_shapes([(n, t.shape, ours[n].shape) for n, t in averaged.items() if t.shape != ours[n].shape])
        return rest

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        self._refuse_shapes(incompatible.incorrect_shapes)  # first: its line should stand alone, without a table
        ours = self.model.state_dict()
        absent = set(incompatible.missing_keys)
        loaded = {tensor.data_ptr() for name, tensor in ours.items() if name not in absent}
        missing = [
            name
            for name in incompatible.missing_keys
            if ours[name].data_ptr() not in loaded and not is_training_part(name)
        ]
        if missing:
            more = ", ..." if len(missing) > 3 else ""
            raise ValueError(
                f"{self._source} lacks {len(missing)} of the model's tensors: {', '.join(missing[:3])}{more}"
            )
        super()._log_incompatible_keys(incompatible)

    def _refuse_shapes(self, shapes: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> None:
        for name, saved, expected in shapes:
            if CLASS_HEADS.search(name) and saved[1:] == expected[1:]:
                raise ValueError(
                    f"{self._source} has {plural(saved[0], 'class')}, the config's model has {expected[0]} ({name}): "
                    f"set model.num_classes={saved[0]}"
                )
            raise ValueError(
                f"{self._source} is of another model: {name} is {_size(saved)} in it, {_size(expected)} in the "
                "config's model (another number of classes or queries?)"
            )


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "a number"


def load_detector(
    cfg: DictConfig, checkpoint: str, for_training: bool = False, overrides: Sequence[str] = ()
) -> nn.Module:
    """Build the model of `cfg` on `cfg.train.device` in evaluation mode, without parts that only training needs.

    It has the averaged weights if the checkpoint has them.

    Args:
        cfg: as `load_config` returns it. Its device is resolved, and settings of the weights are set, in place.
        checkpoint: a .pth or .safetensors file, a URL that DetectionCheckpointer reads, or `zoo:NAME`; "" for random
            weights. Weights of other code bases are converted, see `detrkit.weights`.
        for_training: return the complete model in training mode.
        overrides: `key=value` that the user gave; settings of the weights do not replace them.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: the checkpoint is of another model, the config has no model, or there is no such device.
    """
    if "model" not in cfg or "train" not in cfg:
        raise ValueError("the config has no model or no train: expected one of those that `align-detr configs` lists")
    if checkpoint and not is_remote(checkpoint) and not Path(checkpoint).is_file():
        raise FileNotFoundError(f"no such checkpoint: {checkpoint}")
    cfg.train.device = resolve_device(cfg.train.device)
    if "device" in call_parameters(cfg.model.get("_target_")):
        cfg.model.device = cfg.train.device
    if prepared := prepare_config(cfg, checkpoint, overrides=overrides, for_training=for_training):
        prepared.log()
    model = instantiate(cfg.model).to(cfg.train.device)
    ema.may_build_model_ema(cfg, model)
    checkpointer = WholeModelCheckpointer(model, **ema.may_get_ema_checkpointer(cfg, model))
    checkpointer.load(checkpoint)
    if cfg.train.model_ema.enabled and ema.get_model_ema_state(model).has_inited():
        ema.apply_model_ema(model)
    if for_training:
        return model.train()
    return drop_training_parts(model).eval()
