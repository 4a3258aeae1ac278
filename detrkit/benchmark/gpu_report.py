"""What only a GPU can tell, as one page: correctness and speed of the kernels, of training steps and of inference."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detrex.layers import multi_scale_deform_attn as attention
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from align_detr._platform import describe
from detrkit.config.load import load_config
from detrkit.runtime.device import device_name
from detrkit.runtime.files import atomic_write
from detrkit.training.loading import load_detector

from .memory import peak_bytes
from .stopwatch import Measurement, Stopwatch, Timing, by_turns
from .suite import OBJECTS, bound
from .workloads import (
    ATTENTION,
    Attention,
    Inference,
    Size,
    Step,
    Workload,
    attention_inputs,
    reference,
    synthetic_batch,
)

COCO_IMAGES, EPOCHS = 118_287, 12
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Largest error, relative to the largest value: twice the rounding of the type. In float32, where the order of a sum's
# terms matters more, twice FLOAT32_ERROR.
TOLERANCE = 2
FLOAT32_ERROR = 2e-6
BFLOAT16 = ("train.amp.enabled=True", "train.amp.dtype=bfloat16")


class Variant(NamedTuple):
    """A way to run a model: changes of its config, and whether it is the plain formulation."""

    overrides: tuple[str, ...]
    plain: bool = False


STEPS = {
    "plain, float32": Variant((), True),
    "float32": Variant(()),
    "plain, bfloat16": Variant(BFLOAT16, True),
    "bfloat16": Variant(BFLOAT16),
    "bfloat16, fused AdamW": Variant((*BFLOAT16, "+optimizer.fused=True")),
    "bfloat16, compiled": Variant((*BFLOAT16, "train.compile=True")),
}
INFERENCES = {name: STEPS[name] for name in ("plain, float32", "float32", "plain, bfloat16", "bfloat16")}


@dataclass(frozen=True)
class GpuReportOptions:
    """What to measure.

    Attributes:
        config: name or path.
        overrides: `key=value`.
        image_size: (height, width) in pixels.
        batch_sizes: of training steps and attention.
        inference_batch_sizes: of inference.
        repeats: timed runs of each workload.
    """

    config: str
    overrides: Sequence[str] = ()
    image_size: Size = (800, 1333)
    batch_sizes: Sequence[int] = (2, 4, 8, 16)
    inference_batch_sizes: Sequence[int] = (1, 16)
    repeats: int = 7


class GpuReport:
    """The measurements of one config, section by section.

    Attributes:
        records: all figures so far.
        page: paragraphs of the page so far, in Markdown.

    Raises:
        FileNotFoundError: this is no checkout, which has the plain formulations.
    """

    def __init__(self, options: GpuReportOptions):
        reference()
        self.options = options
        self.cfg = load_config(options.config, list(options.overrides))
        self.device = torch.device(self.cfg.train.device)
        self.records: list[dict[str, Any]] = []
        device, (height, width) = device_name(self.cfg.train.device), options.image_size
        self.page = [
            "# On a GPU",
            f"{device}, PyTorch {torch.__version__}, {describe()}. `{options.config}`, images of {height} × {width} "
            f"with {OBJECTS} objects, medians of {options.repeats}.",
        ]

    def write(self, folder: Path) -> Iterator[str]:
        """Measure section by section; yield each, after `folder` has the page and all figures up to it."""
        for title in ("correctness", "attention", "step", "inference", "schedule"):
            rows, *remarks = getattr(self, title)()
            section = [f"## {title.capitalize()}", tabulate(rows, "keys", "github", floatfmt=".3g"), *remarks]
            self.page += section
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in {"gpu.md": "\n\n".join(self.page) + "\n", "gpu.json": json.dumps(self.records)}.items():
                with atomic_write(folder / name) as file:
                    file.write(text.encode())
            yield "\n\n".join(section)

    def layers(self) -> dict[str, tuple]:
        """Inputs of deformable attention by layer ("encoder", "decoder"), for one image of full size."""
        model = load_detector(self.cfg, "", for_training=True)
        return attention_inputs(model, synthetic_batch(1, self.options.image_size, OBJECTS, model.num_classes))

    def correctness(self) -> Iterator[Any]:
        rows = [
            {"layer": layer, "dtype": str(dtype).removeprefix("torch."), **errors(inputs, dtype)}
            for layer, inputs in self.layers().items()
            for dtype in DTYPES
        ]
        self.records += [{"part": "correctness", **row} for row in rows]
        yield rows
        yield "Largest difference from the plain formula in float64 on the same inputs, relative to the largest value."
        wrong = [row for row in rows if row["within rounding"] != "yes"]
        if not rows:
            yield "No deformable attention in this model."
        elif wrong:
            yield f"**{len(wrong)} of {len(rows)} are off by more than rounding.**"

    def attention(self) -> Iterator[Any]:
        rows = []
        for layer, (value, shapes, locations, weights) in self.layers().items():
            for dtype in (torch.float32, torch.bfloat16):
                inputs = value.to(dtype), shapes, locations, weights.to(dtype)
                for batch in self.options.batch_sizes:
                    workload = self.workload(Attention, (), batch, inputs)
                    labels = {"layer": layer, "dtype": str(dtype).removeprefix("torch."), "batch": batch}
                    rows.append({**labels, **self.attention_row(workload, labels)})
        yield rows
        yield "Forward and backward, each beside the least time of its memory traffic at the speed of copies."

    def attention_row(self, workload: Attention, labels: dict[str, Any]) -> dict[str, Any]:
        runs = self.fitting(workload, {"plain": True, "ours": False})
        timings = by_turns(runs, self.device, self.options.repeats)
        ours, plain = timings.get("ours"), timings.get("plain")
        self.records.append({"part": "attention", **labels, "ours": _summary(ours), "plain": _summary(plain)})
        if ours is None:
            return {"forward, ms": "out of memory"}
        row = {f"{phase}, ms": 1e3 * ours.phases[phase] for phase in ("forward", "backward")}
        if self.device.type == "cuda":
            least = bound(workload, self.device)
            row |= {f"{phase} / bound": ours.phases[phase] / least[phase] for phase in least}
        return row | {"of plain": "plain is out of memory" if plain is None else ours.median / plain.median}

    def step(self) -> Iterator[Any]:
        yield self.whole_model("step", Step, STEPS, self.options.batch_sizes)
        yield "Busy: the share of the time in which the GPU computes; the rest it waits for the host."

    def inference(self) -> Iterator[Any]:
        yield self.whole_model("inference", Inference, INFERENCES, self.options.inference_batch_sizes)

    def whole_model(
        self, part: str, kind: type[Workload], variants: dict[str, Variant], batches: Sequence[int]
    ) -> list[dict[str, Any]]:
        rows = []
        for batch in batches:
            plain_seconds = None  # of the same precision
            for name, variant in tqdm(variants.items(), f"{part}, batch {batch}", leave=False, disable=None):
                workload = self.workload(kind, variant.overrides, batch)
                runs = self.fitting(workload, {"it": variant.plain})
                timing = by_turns(runs, self.device, self.options.repeats).get("it")
                if variant.plain:
                    plain_seconds = timing and timing.median
                record = {"part": part, "batch": batch, "variant": name, "it": _summary(timing)}
                self.records.append(record)
                row = {"batch": batch, "": name}
                rows.append(row)
                if timing is None:
                    row["images/s"] = "out of memory"
                    continue
                record["images_per_s"] = batch / timing.median
                busy = self.busy(runs.pop("it"), timing.median)
                _free()
                peak = peak_bytes(workload, variant.plain, self.device)
                row |= {"images/s": record["images_per_s"], "ms": 1e3 * timing.median}
                row["as fast as plain"] = plain_seconds and plain_seconds / timing.median
                row |= {"memory, GB": peak and peak / 1e9, "busy": busy}
                total = sum(timing.phases.values())
                row |= {phase: f"{seconds / total:.0%}" for phase, seconds in timing.phases.items() if part == "step"}
        return rows

    def schedule(self) -> Iterator[Any]:
        rates = {
            (r["variant"], r["batch"]): r["images_per_s"] for r in self.records if r["part"] == "step" and r["it"]
        }
        ours = {key: rate for key, rate in rates.items() if not STEPS[key[0]].plain}
        rows = [
            {"variant": variant, "batch": batch, "images/s": rate, "hours": EPOCHS * COCO_IMAGES / rate / 3600}
            for (variant, batch), rate in sorted(ours.items(), key=lambda entry: -entry[1])[:3]
        ]
        self.records += [{"part": "schedule", **row} for row in rows]
        yield rows
        yield f"{EPOCHS} epochs of COCO's {COCO_IMAGES} images at the rates above, if the data keep up with them."

    def workload(self, kind: type[Workload], overrides: Sequence[str], batch: int, *inputs: Any) -> Workload:
        changes = [*self.options.overrides, f"train.device={self.device}", *overrides]
        return kind(self.options.config, changes, batch, self.options.image_size, OBJECTS, *inputs)

    def fitting(self, workload: Workload, names: dict[str, bool]) -> dict[str, Measurement]:
        """The formulations that fit into memory, prepared; `names` says by name whether one is plain."""
        _free()
        runs: dict[str, Measurement] = {}
        for name, plain in names.items():
            try:
                run = workload.prepare(plain)
                run(Stopwatch(self.device))
                runs[name] = run
            except torch.cuda.OutOfMemoryError:
                run = None
                _free()
        return runs

    def busy(self, run: Measurement, seconds: float) -> str:
        """Share of the run's `seconds` in which the GPU computes."""
        if self.device.type != "cuda":
            return "no GPU"
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run(Stopwatch(self.device))
        computing = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
        return f"{min(computing / seconds, 1):.0%}"


def errors(inputs: tuple, dtype: torch.dtype) -> dict[str, Any]:
    """Errors of deformable attention and its gradients, relative to the plain formula in float64.

    Args:
        inputs: value (B, Σ h·w, H, D), shapes, locations (B, Lq, H, L, P, 2) and weights (B, Lq, H, L, P), on the
            device.
        dtype: value and weights are rounded to it for both sides.

    Returns:
        For output and gradients the largest error relative to the largest value; and whether all are within rounding.
    """
    value, shapes, locations, weights = inputs
    rounded = value.detach().to(dtype), locations.detach(), weights.detach().to(dtype)

    def output_and_gradients(function: Callable, tensors: Sequence[Tensor]) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        output = function(leaves[0], shapes, *leaves[1:])
        generator = torch.Generator().manual_seed(0)
        grad = torch.randn(output.shape, generator=generator).to(output.device, dtype)
        return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]

    outputs = output_and_gradients(getattr(attention, ATTENTION), rounded)
    expected = output_and_gradients(reference().deform_attn, [tensor.double() for tensor in rounded])
    names = ("output", "of value", "of locations", "of weights")
    largest = {
        name: float((ours.double() - exact).abs().max() / exact.abs().max())
        for name, ours, exact in zip(names, outputs, expected, strict=True)
    }
    limit = TOLERANCE * max(torch.finfo(dtype).eps, FLOAT32_ERROR)
    return largest | {"within rounding": "yes" if max(largest.values()) <= limit else "**no**"}


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _summary(timing: Timing | None) -> dict[str, Any] | None:
    return timing and timing.summary()
