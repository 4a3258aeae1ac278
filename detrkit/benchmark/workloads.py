"""Workloads that are measured: criterion, attention, training step, inference."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from detectron2.config import instantiate
from detectron2.engine import HookBase
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from detrex.layers import multi_scale_deform_attn as attention
from omegaconf import DictConfig
from torch import Tensor, nn

from align_detr._platform import EMBEDDED_ROOT
from detrkit.benchmark.stopwatch import Measurement, Stopwatch
from detrkit.config.load import load_config
from detrkit.training.builders import autocast_of, build_optimizer, build_trainer, compile_parts
from detrkit.training.loading import load_detector

REFERENCE = EMBEDDED_ROOT.parent / "tests" / "reference" / "training_step.py"
# Name of the function that the layers call: the embedded engine's, or the one that detrex calls on a CPU.
ATTENTION = next(
    name for name in ("multi_scale_deformable_attn", "multi_scale_deformable_attn_pytorch") if hasattr(attention, name)
)
AT_ONCE = 20  # calls of the attention on a GPU, where starting one takes as long as the call
GATHERED_CELLS = 4  # read for a bilinear sample
Size = tuple[int, int]  # height, width


def synthetic_batch(batch: int, size: Size, objects: int, num_classes: int) -> list[dict[str, Any]]:
    """Images of noise with `objects` boxes each, as a training data loader returns them; the same in each call."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    examples = []
    for _ in range(batch):
        center, side = random_boxes((objects,), generator).split(2, dim=-1)
        corners = torch.cat([center - side / 2, center + side / 2], dim=-1) * torch.tensor([width, height] * 2)
        classes = torch.randint(num_classes, (objects,), generator=generator)
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        instances = Instances(size, gt_boxes=Boxes(corners), gt_classes=classes)
        examples.append({"image": image, "height": height, "width": width, "instances": instances})
    return examples


def random_boxes(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random boxes (*shape, 4), cxcywh in [0, 1], inside the image, most of them small."""
    side = 0.02 + 0.5 * torch.rand(*shape, 2, generator=generator) ** 2
    return torch.cat([side / 2 + (1 - side) * torch.rand(*shape, 2, generator=generator), side], dim=-1)


@dataclass
class Workload:
    """What is measured; it can be pickled and run in another process.

    Attributes:
        config_file: name or path.
        overrides: `key=value`.
        batch: images in a batch.
        size: (height, width) of the images, in pixels.
        objects: objects per image.
    """

    config_file: str
    overrides: list[str]
    batch: int
    size: Size
    objects: int

    def config(self) -> DictConfig:
        """The config, with the random generators seeded."""
        torch.manual_seed(0)
        return load_config(self.config_file, self.overrides)

    def prepare(self, plain: bool) -> Measurement:
        """A function that runs the workload once; `plain`: in the formulation of the reference."""
        raise NotImplementedError


@dataclass
class Criterion(Workload):
    """The losses of random predictions, with matching, forward and backward.

    Attributes:
        calls: arguments of the criterion in a training step with one image.
    """

    calls: list[tuple[tuple, dict]]

    def prepare(self, plain: bool) -> Measurement:
        cfg = self.config()
        device = torch.device(cfg.train.device)
        criterion = instantiate(cfg.model.criterion).to(device)
        if plain:
            criterion.forward = reference().plain_criterion(criterion)
        generator = torch.Generator().manual_seed(0)
        targets = [
            {
                "labels": torch.randint(criterion.num_classes, (self.objects,), generator=generator).to(device),
                "boxes": random_boxes((self.objects,), generator).to(device),
            }
            for _ in range(self.batch)
        ]
        predictions: list[Tensor] = []

        def enlarged(node: Any, name: str = "") -> Any:
            """The same argument for the whole batch."""
            if isinstance(node, dict):
                return {key: enlarged(value, key) for key, value in node.items()}
            if isinstance(node, list | tuple):
                return targets if "labels" in node[0] else [enlarged(value, name) for value in node]
            if not name.startswith("pred_"):
                return node
            shape = (self.batch, *node.shape[1:])
            if name.startswith("pred_boxes"):
                values = random_boxes(shape[:-1], generator)
            else:
                values = torch.randn(shape, generator=generator) * 1.5 - 3
            predictions.append(values.to(device, node.dtype).requires_grad_())
            return predictions[-1]

        calls = [
            ([enlarged(value) for value in args], {name: enlarged(value) for name, value in kwargs.items()})
            for args, kwargs in self.calls
        ]

        def run(watch: Stopwatch) -> None:
            loss = sum(loss for args, kwargs in calls for loss in criterion(*args, **kwargs).values())
            watch.mark("forward")
            torch.autograd.grad(loss, predictions)
            watch.mark("backward")

        return run


def attention_inputs(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, tuple]:
    """Arguments of the first deformable attention of "encoder" and "decoder" in a training step; {} without any."""
    inputs: dict[str, tuple] = {}
    function = getattr(attention, ATTENTION)

    def record(*args: Any) -> Tensor:
        value, _, locations, _ = args
        inputs.setdefault("encoder" if value.shape[1] == locations.shape[1] else "decoder", args)
        return function(*args)

    with patch.object(attention, ATTENTION, record), torch.no_grad():
        model(batch)
    return inputs


@dataclass
class Attention(Workload):
    """Deformable attention alone, forward and backward.

    Attributes:
        inputs: value, shapes, locations and weights of a layer for one image.
    """

    inputs: tuple[Tensor, Any, Tensor, Tensor]

    def prepare(self, plain: bool) -> Measurement:
        device = torch.device(self.config().train.device)
        on_device = [x.to(device) if isinstance(x, Tensor) else x for x in self.inputs]
        for i in (0, 2, 3):
            on_device[i] = on_device[i].repeat(self.batch, *[1] * (on_device[i].dim() - 1)).requires_grad_()
        leaves = [on_device[i] for i in (0, 2, 3)]
        function = _plain_attention if plain else getattr(attention, ATTENTION)
        times = 1 if device.type == "cpu" else AT_ONCE

        def run(watch: Stopwatch) -> None:
            for _ in range(times):
                output = function(*on_device)
            watch.mark("forward", times)
            for _ in range(times):
                torch.autograd.grad(output, leaves, output.detach(), retain_graph=True)
            watch.mark("backward", times)

        return run

    def traffic(self) -> dict[str, tuple[int, int]]:
        """Least bytes of traffic by phase: (with memory, with the cache).

        Memory traffic: each argument and result once. The gradient of the values is set to zero, read and written.
        Cache traffic: the four cells of every sample are read. The backward pass also adds to them, which reads and
        writes.
        """
        value, _, locations, weights = self.inputs
        values, places, shares = (self.batch * x.numel() * x.element_size() for x in (value, locations, weights))
        output = self.batch * locations.shape[1] * value[0, 0].numel() * value.element_size()
        gathered = self.batch * weights.numel() * GATHERED_CELLS * value.shape[-1] * value.element_size()
        arguments = values + places + shares
        added = 4 * gathered // value.element_size()  # in float32
        return {
            "forward": (arguments + output, gathered),
            "backward": (arguments + output + 3 * values + places + shares, gathered + 2 * added),
        }


def _plain_attention(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
    """The reference's attention in the type of the locations, as under autocast."""
    return reference().deform_attn(value.to(locations.dtype), shapes, locations, weights.to(locations.dtype))


@dataclass
class Step(Workload):
    """A training step as in `align-detr train`."""

    def prepare(self, plain: bool) -> Measurement:
        cfg = self.config()
        model = load_detector(cfg, "", for_training=True)
        if cfg.train.get("compile", False):
            compile_parts(model)
        batch = synthetic_batch(self.batch, self.size, self.objects, model.num_classes)
        optimizer = build_optimizer(cfg, model)
        trainer = build_trainer(cfg, model, repeat(batch), optimizer)
        parts = Parts(model)
        trainer.register_hooks([parts])
        trainer.iter, trainer.max_iter = 0, sys.maxsize
        formulation = reference().plain_formulation if plain else nullcontext

        def run(watch: Stopwatch) -> None:
            parts.watch = watch
            with formulation(model), EventStorage() as trainer.storage:
                trainer.run_step()
            watch.mark("clipping and optimizer")

        return run


class Parts(HookBase):
    """Marks the parts of a training step.

    The backward pass runs the other way round. The gradient of a prediction is ready when it has passed the criterion;
    the gradient of a feature of the backbone, when it has passed transformer and heads.
    """

    watch: Stopwatch

    def __init__(self, model: nn.Module):
        model.backbone.register_forward_hook(self._after_backbone)
        model.criterion.register_forward_pre_hook(self._before_criterion)
        model.criterion.register_forward_hook(lambda *_: self.watch.mark("criterion"))

    def _after_backbone(self, module: nn.Module, args: tuple, features: dict[str, Tensor]) -> None:
        self.watch.mark("backbone")
        self._mark_on_way_back(features, "transformer and heads")

    def _before_criterion(self, module: nn.Module, args: tuple) -> None:
        self.watch.mark("transformer and heads")
        self._mark_on_way_back(args, "criterion")

    def _mark_on_way_back(self, node: Any, name: str) -> None:
        passed: list[bool] = []

        def mark(gradient: Tensor) -> None:
            if not passed:
                passed.append(True)
                self.watch.mark(name)

        for tensor in tensors(node):
            if tensor.requires_grad:
                tensor.register_hook(mark)

    def after_backward(self) -> None:
        self.watch.mark("backbone")


def tensors(node: Any) -> Iterator[Tensor]:
    """The tensors in nested dictionaries, lists and tuples."""
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            yield from tensors(value)


@dataclass
class Inference(Workload):
    """From a batch of images of one size to detections."""

    def prepare(self, plain: bool) -> Measurement:
        cfg = self.config()
        model = load_detector(cfg, "")
        batch = synthetic_batch(self.batch, self.size, self.objects, model.num_classes)
        formulation = reference().plain_formulation if plain else nullcontext

        def run(watch: Stopwatch) -> None:
            with formulation(model), torch.no_grad(), autocast_of(cfg):
                model(batch)
            watch.mark("inference")

        return run


@cache
def reference() -> ModuleType:
    """Import tests/reference/training_step.py.

    Raises:
        FileNotFoundError: this is no checkout.
    """
    if not REFERENCE.is_file():
        raise FileNotFoundError(f"--reference takes a checkout: there is no {REFERENCE}")
    spec = importlib.util.spec_from_file_location("reference_training_step", REFERENCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
