"""Any model of timm in a config by its name alone: its feature maps, their channels, and its published weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from detectron2.layers import ShapeSpec
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir

STRIDES = (8, 16, 32)


def timm_indices(model_name: str, strides: Sequence[int] = STRIDES) -> list[int]:
    """Indices of a timm model's feature maps with these strides, for `TimmBackbone(out_indices=…)`.

    Of several feature maps with one stride, the last is taken.

    Args:
        model_name: as `timm.create_model` takes it; the model must support `features_only`.
        strides: in pixels, ascending.

    Raises:
        ImportError: timm is not installed.
        ValueError: there is no such model, or it has no feature map of a stride.
    """
    by_stride = {stride: index for index, (stride, _) in enumerate(_feature_maps(model_name))}
    absent = [stride for stride in strides if stride not in by_stride]
    if absent:
        raise ValueError(
            f"model_name={model_name!r} has no feature map of stride {absent[0]}, but of "
            f"{', '.join(map(str, by_stride))}: choose another model"
        )
    return [by_stride[stride] for stride in strides]


def timm_feature_names(model_name: str, strides: Sequence[int] = STRIDES) -> list[str]:
    """Names of these feature maps, for `ChannelMapper(in_features=…)`. Arguments of `timm_indices`."""
    return [f"p{index}" for index in timm_indices(model_name, strides)]


def timm_feature_shapes(model_name: str, strides: Sequence[int] = STRIDES) -> dict[str, ShapeSpec]:
    """Channels of these feature maps, for `ChannelMapper(input_shapes=…)`. Arguments of `timm_indices`."""
    maps = _feature_maps(model_name)
    return {
        f"p{index}": ShapeSpec(channels=maps[index][1], stride=maps[index][0])
        for index in timm_indices(model_name, strides)
    }


@cache
def _feature_maps(model_name: str) -> tuple[tuple[int, int], ...]:
    """Stride and channels of each feature map of a timm model."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"the feature maps of {model_name} need timm: pip install timm") from error
    try:
        with torch.device("cpu"):
            info = timm.create_model(model_name, features_only=True).feature_info
    except (RuntimeError, AttributeError, AssertionError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"timm cannot build model_name={model_name!r} with feature maps: {reason}") from error
    return tuple(zip(info.reduction(), info.channels(), strict=True))


class TimmHandler(PathHandler):
    """Reads `timm://NAME`: the weights that timm publishes for a model, as a checkpoint of a detector whose backbone
    is a `TimmBackbone` of that model. The file is made once, from timm's download.

    Raises:
        ImportError: timm is not installed.
        OSError: the weights cannot be downloaded.
    """

    PREFIX = "timm://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        name = path.removeprefix(self.PREFIX)
        target = Path(get_cache_dir(), "timm", f"{name.replace('/', '_')}.pth")
        if force or not target.is_file():
            import timm

            try:
                state = timm.create_model(name, features_only=True, pretrained=True).state_dict()
            except Exception as error:  # huggingface_hub and urllib raise errors of many kinds
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise OSError(
                    f"the weights of timm's {name} cannot be downloaded ({reason}): give a file by "
                    "model.backbone.backbone.checkpoint_path, and train.init_checkpoint=''"
                ) from error
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
            torch.save({"model": {f"backbone.timm_model.{key}": value for key, value in state.items()}}, unfinished)
            os.replace(unfinished, target)
        return str(target)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering=buffering, **kwargs)


PathManager.register_handler(TimmHandler(), allow_override=True)
