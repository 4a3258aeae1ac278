"""Backbones of timm (https://github.com/huggingface/pytorch-image-models) that return feature maps."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

__all__ = ["TimmBackbone"]

# Models built for one image size take other sizes with one of these; the others refuse both.
_ANY_IMAGE_SIZE = ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"strict_img_size": False}, {})

# Names that detectors, DistributedDataParallel and `torch.compile` put before those of the timm model.
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "timm_model.")


class TimmBackbone(Backbone):
    """A timm model whose feature maps are named `p<index>`.

    Args:
        model_name: as `timm.create_model` takes it; it must support `features_only`.
        features_only: return feature maps; only True is accepted, since a classifier is no backbone.
        pretrained: load the weights that timm publishes for this model.
        checkpoint_path: a file of weights, or a URL that detectron2's `PathManager` reads: a state dict of this model,
            with or without classifier, or of a detector that has it as backbone; "" for none.
        in_channels: channels of the images.
        out_indices: feature maps to return, by timm's index, in ascending order.
        norm_layer: the normalisation layer, for models that let it be chosen. detectron2's `FrozenBatchNorm2d` freezes
            every batch normalisation with the statistics and affine maps of the weights, in any model.

    Raises:
        ImportError: timm is not installed.
        ValueError: there is no such model or feature map, or the model does not take the arguments, or
            `checkpoint_path` does not hold all of its weights.
        OSError: the weights cannot be downloaded or read.
    """

    def __init__(
        self,
        model_name: str,
        features_only: bool = True,
        pretrained: bool = False,
        checkpoint_path: str = "",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        norm_layer: Callable[..., nn.Module] | None = None,
    ):
        super().__init__()
        if not features_only:
            raise ValueError("TimmBackbone: features_only=False gives no feature maps; use features_only=True")
        if not isinstance(pretrained, bool):
            raise TypeError(f"TimmBackbone: pretrained is {pretrained!r}; use True or False; a file is checkpoint_path")
        if list(out_indices) != sorted(set(out_indices)) or not out_indices or out_indices[0] < 0:
            raise ValueError(f"TimmBackbone: out_indices is {tuple(out_indices)}; use indices from 0, ascending")
        timm = _import_timm()
        self.timm_model = _create_model(
            timm,
            model_name,
            pretrained=pretrained and not checkpoint_path,
            in_chans=in_channels,
            out_indices=tuple(out_indices),
            norm_layer=None if norm_layer is FrozenBatchNorm2d else norm_layer,
        )
        if checkpoint_path:
            _load_weights(timm, self.timm_model, str(checkpoint_path))
        if norm_layer is FrozenBatchNorm2d:  # timm's batch norms may include the activation, so timm freezes them
            self.timm_model = timm.layers.freeze_batch_norm_2d(self.timm_model)

        info = self.timm_model.feature_info
        self.out_indices = tuple(out_indices)
        self._shapes = {
            f"p{index}": ShapeSpec(channels=channels, stride=stride)
            for index, channels, stride in zip(self.out_indices, info.channels(), info.reduction(), strict=True)
        }
        # Swin and other models without convolutions inside return (B, H, W, C).
        self._channels_are_last = getattr(self.timm_model, "output_fmt", "NCHW") == "NHWC"
        for module in self.timm_model.modules():  # images need not be multiples of the patch size
            if hasattr(module, "dynamic_img_pad"):
                module.dynamic_img_pad = True

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, in_channels, H, W) to feature maps (B, C, ⌈H/stride⌉, ⌈W/stride⌉) by name."""
        if x.device.type == "cpu":  # convolutions take up to twice as long in the other memory format there
            x = x.contiguous(memory_format=torch.channels_last)
        features = self.timm_model(x)
        if self._channels_are_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return dict(zip(self._shapes, features, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        return dict(self._shapes)


def _import_timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ImportError(
            f"TimmBackbone needs timm and torchvision ({error}): pip install timm torchvision"
        ) from error
    except RuntimeError as error:  # torchvision's operators were compiled for another PyTorch
        raise ImportError(f"timm cannot be imported ({error}): install the torchvision of this PyTorch") from error


def _create_model(timm: ModuleType, name: str, **arguments: Any) -> nn.Module:
    if not timm.is_model(name) and ":" not in name:  # "hf-hub:" and "local-dir:" name models of other places
        near = ", ".join(timm.list_models(f"*{re.split('[._]', name)[0]}*")[:5])
        raise ValueError(f"timm {timm.__version__} has no model {name!r}{f'; there are {near}, …' if near else ''}")
    for options in _ANY_IMAGE_SIZE:
        try:
            return timm.create_model(name, features_only=True, **options, **arguments)
        except TypeError as error:
            refusal = error
            if not any(option in str(error) for option in options):
                break
        except (AssertionError, AttributeError, KeyError, IndexError, RuntimeError, ValueError) as error:
            refusal = error
            break
        except OSError as error:
            raise OSError(
                f"the weights of {name} cannot be downloaded ({_first_line(error)}): give a file by checkpoint_path"
            ) from error
    given = ", ".join(f"{key}={value}" for key, value in arguments.items() if value is not None)
    raise ValueError(f"timm cannot build {name} with feature maps and {given}: {_first_line(refusal)}") from refusal


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _load_weights(timm: ModuleType, model: nn.Module, path: str) -> None:
    """Fill `model`, a feature extractor, from the weights of it or of the classifier that it is a part of."""
    local = PathManager.get_local_path(path)
    try:
        state = timm.models.load_state_dict(local, use_ema=False, device="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged file leads to
        raise ValueError(f"{path} is not a file of weights that can be read safely: {_first_line(error)}") from error
    ours = model.state_dict()
    theirs = _under_names_of(ours, state)
    wrong = [
        f"{name} {'×'.join(map(str, theirs[name].shape))} instead of {'×'.join(map(str, ours[name].shape))}"
        if name in theirs
        else f"{name} missing"
        for name in ours
        if (name not in theirs and not name.endswith("num_batches_tracked"))
        or (name in theirs and theirs[name].shape != ours[name].shape)
    ]
    if wrong:
        raise ValueError(f"{path} does not fit the timm model, {len(wrong)} of {len(ours)} tensors: {wrong[0]}, …")
    model.load_state_dict({name: theirs[name] for name in ours if name in theirs}, strict=False)


def _under_names_of(ours: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without prefixes, and with the names that timm's feature extractors give to the parts of a classifier:
    `stages.0.` becomes `stages_0.`, and some put `model.` before all of them."""
    theirs: dict[str, Tensor] = {}
    extractor_prefix = "model." if all(name.startswith("model.") for name in ours) else ""
    flattened = {name.partition(".")[0] for name in ours}
    for name, tensor in state.items():
        while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""):
            name = name.removeprefix(prefix)
        first, _, rest = name.partition(".")
        second, _, rest = rest.partition(".")
        if f"{first}_{second}" in flattened and name not in ours:
            name = f"{first}_{second}.{rest}"
        theirs[name if name in ours else f"{extractor_prefix}{name}"] = tensor
    return theirs
