"""What `align-detr benchmark` measures: criterion, attention, training step, inference; each is prepared, then run."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from multiprocessing.connection import Connection
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
from detrkit.benchmark.stopwatch import Memory, Run, Stopwatch
from detrkit.config.load import load_config
from detrkit.training.builders import autocast_of, build_optimizer, build_trainer, compile_parts
from detrkit.training.loading import load_detector

REFERENCE = EMBEDDED_ROOT.parent / "tests" / "reference" / "training_step.py"
# The function that the layers call: the embedded engine's, or what detrex calls on a CPU.
ATTENTION = next(
    name for name in ("multi_scale_deformable_attn", "multi_scale_deformable_attn_pytorch") if hasattr(attention, name)
)
AT_ONCE = 20  # calls of the attention on a GPU, which takes as long to be told as to do one
GATHERED_CELLS = 4  # of a bilinear sample
Size = tuple[int, int]  # height, width


def synthetic_batch(batch: int, size: Size, objects: int, num_classes: int) -> list[dict[str, Any]]:
    """Images of noise with `objects` boxes each, as a training data loader gives them; the same ones at each call."""
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
    """(*shape, 4), cxcywh in [0, 1], within the image, most of them small."""
    side = 0.02 + 0.5 * torch.rand(*shape, 2, generator=generator) ** 2
    return torch.cat([side / 2 + (1 - side) * torch.rand(*shape, 2, generator=generator), side], dim=-1)


@dataclass
class Setting:
    """What is measured at once. Can be sent to another process, whose memory is then that of this alone."""

    config_file: str
    overrides: list[str]
    batch: int
    size: Size
    objects: int

    def config(self) -> DictConfig:
        torch.manual_seed(0)
        return load_config(self.config_file, self.overrides)

    def prepare(self, plain: bool) -> Run:
        """A function that runs it once; `plain` for the reference's formulation."""
        raise NotImplementedError


@dataclass
class Criterion(Setting):
    """`calls`: the arguments that the criterion gets in a step of the model, with one image."""

    calls: list[tuple[tuple, dict]]

    def prepare(self, plain: bool) -> Run:
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
    """What deformable attention gets first in "encoder" and "decoder" in a training step; empty without it."""
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
class Attention(Setting):
    """`inputs`: value, shapes, locations and weights that a layer gets in the model, with one image."""

    inputs: tuple[Tensor, Any, Tensor, Tensor]

    def prepare(self, plain: bool) -> Run:
        device = torch.device(self.config().train.device)
        on_device = [x.to(device) if isinstance(x, Tensor) else x for x in self.inputs]
        for i in (0, 2, 3):
            on_device[i] = on_device[i].repeat(self.batch, *[1] * (on_device[i].dim() - 1)).requires_grad_()
        wanted = [on_device[i] for i in (0, 2, 3)]
        function = _plain_attention if plain else getattr(attention, ATTENTION)
        times = 1 if device.type == "cpu" else AT_ONCE

        def run(watch: Stopwatch) -> None:
            for _ in range(times):
                output = function(*on_device)
            watch.mark("forward", times)
            for _ in range(times):
                torch.autograd.grad(output, wanted, output.detach(), retain_graph=True)
            watch.mark("backward", times)

        return run

    def traffic(self) -> dict[str, tuple[int, int]]:
        """Bytes that forward and backward move at least: (from and to memory, from and to the cache).

        Memory sees each argument and result once; in the gradient of the values all cells are set to zero, then read
        and written. Caches see every sample's four cells, read; in backward added to, which reads and writes, as well.
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
    """In the type of the locations, as autocast has it."""
    return reference().deform_attn(value.to(locations.dtype), shapes, locations, weights.to(locations.dtype))


@dataclass
class Step(Setting):
    """A training step, as align-detr train does it."""

    def prepare(self, plain: bool) -> Run:
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
    """Marks the parts of a step. Backward runs the other way round: once it comes to what made one of the predictions,
    it is through with the criterion, and with all but the backbone once it comes to what made one of its features."""

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
    """Those in nested dictionaries, lists and tuples."""
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            yield from tensors(value)


@dataclass
class Inference(Setting):
    """A batch of images of one size to detections."""

    def prepare(self, plain: bool) -> Run:
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
    """tests/reference/training_step.py.

    Raises:
        FileNotFoundError: this is no checkout.
    """
    if not REFERENCE.is_file():
        raise FileNotFoundError(f"--reference takes a checkout: there is no {REFERENCE}")
    spec = importlib.util.spec_from_file_location("reference_training_step", REFERENCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peak_bytes(setting: Setting, plain: bool, device: torch.device) -> int | None:
    """What a run of `setting` needs; None where that cannot be told."""
    memory = Memory(device)
    if not memory.known:
        return None
    if memory.on_gpu:
        return _peak_bytes(setting, plain, memory)
    context = multiprocessing.get_context("spawn")  # a forked process would share this one's pages
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak_bytes, args=(sender, setting, plain, memory))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise OSError("the process that was to measure the memory died: did it run out of it?") from None
    finally:
        process.join()


def _send_peak_bytes(sender: Connection, setting: Setting, plain: bool, memory: Memory) -> None:
    # What is imported at its first use is not this run's.
    layer = attention.MultiScaleDeformableAttention(8, 1, num_levels=1, num_points=1, batch_first=True)
    layer(
        torch.zeros(1, 1, 8), reference_points=torch.zeros(1, 1, 1, 2), spatial_shapes=torch.ones(1, 2).long()
    ).sum().backward()
    sender.send(_peak_bytes(setting, plain, memory))


def _peak_bytes(setting: Setting, plain: bool, memory: Memory) -> int:
    before = memory.now()
    run = setting.prepare(plain)
    if isinstance(setting, Criterion | Attention):  # what they get is not theirs
        before = memory.now()
    memory.reset()
    for _ in range(2):  # the optimizer's state comes with the first
        run(Stopwatch(memory.device))
    return memory.peak() - before
