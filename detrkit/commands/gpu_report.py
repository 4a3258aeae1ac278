"""Measure on one GPU what only a GPU can tell, all of it with one command, and write it as one page.

    align-detr gpu-report [--config-file CONFIG] [--output FOLDER] [--image-size 800x1333] [--batch-sizes 2 4 8 16]
        [--inference-batch-sizes 1 16] [--repeats 7] [key=value ...]

    correctness  the kernels of deformable attention beside the plain formula in float64, on what encoder and decoder
                 get, in float32, bfloat16 and float16: output and all gradients
    attention    their times, beside the plain formula's and the time that their memory traffic takes at least
    step         of a training, in float32 and bfloat16, with what may make it faster, beside the plain formulation:
                 images/s, memory, the share of each part, and for how much of it the GPU has something to do
    inference    from a batch of images to detections, likewise
    schedule     hours of 12 epochs of COCO at the best rate

Writes FOLDER/gpu.md and gpu.json after each of them, so that what is interrupted is not lost. Times are medians, each
setting by turns with its plain formulation. What does not fit into memory is a line that says so. It takes a checkout,
as the plain formulations are in tests/reference. On a CPU (train.device=cpu) it only shows that it works.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detrex.layers import multi_scale_deform_attn as attention
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from align_detr._platform import describe
from detrkit.benchmark.stopwatch import Run, Stopwatch, Timing, by_turns
from detrkit.benchmark.workloads import (
    ATTENTION,
    Attention,
    Inference,
    Setting,
    Step,
    attention_inputs,
    peak_bytes,
    reference,
    synthetic_batch,
)
from detrkit.commands.benchmark import OBJECTS, bound, parse_size, positive
from detrkit.commands.command_line import errors_in_one_line
from detrkit.config.load import load_config
from detrkit.runtime.device import device_name
from detrkit.runtime.files import atomic_write
from detrkit.training.loading import load_detector

CONFIG = "align_detr_r50_4scale_12ep"
COCO_IMAGES, EPOCHS = 118_287, 12
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of the largest value: twice the type's rounding, or in float32 twice what the order of a sum's terms does.
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


class Report:
    """The measurements, section by section; see the module's text.

    Attributes:
        records: all figures, for machines.
        page: what there is so far, in Markdown.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.cfg = load_config(args.config_file, args.opts)
        self.device = torch.device(self.cfg.train.device)
        self.overrides = [*args.opts, f"train.device={self.device}"]
        self.records: list[dict[str, Any]] = []
        device = device_name(self.cfg.train.device)
        self.page = [
            "# On a GPU",
            f"{device}, PyTorch {torch.__version__}, {describe()}. `{args.config_file}`, images of "
            f"{args.image_size[0]} × {args.image_size[1]} with {OBJECTS} objects, medians of {args.repeats}.",
        ]

    def write(self) -> None:
        for title in ("correctness", "attention", "step", "inference", "schedule"):
            rows, *remarks = getattr(self, title)()
            section = [f"## {title.capitalize()}", tabulate(rows, "keys", "github", floatfmt=".3g"), *remarks]
            self.page += section
            print("\n\n".join(section), end="\n\n", flush=True)
            folder = self.args.output
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in {"gpu.md": "\n\n".join(self.page) + "\n", "gpu.json": json.dumps(self.records)}.items():
                with atomic_write(folder / name) as file:
                    file.write(text.encode())

    def layers(self) -> dict[str, tuple]:
        """What deformable attention gets in encoder and decoder, with one image of full size."""
        model = load_detector(self.cfg, "", for_training=True)
        return attention_inputs(model, synthetic_batch(1, self.args.image_size, OBJECTS, model.num_classes))

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
                given = value.to(dtype), shapes, locations, weights.to(dtype)
                for batch in self.args.batch_sizes:
                    setting = self.setting(Attention, (), batch, given)
                    labels = {"layer": layer, "dtype": str(dtype).removeprefix("torch."), "batch": batch}
                    rows.append({**labels, **self.attention_row(setting, labels)})
        yield rows
        yield "Forward and backward, each beside the least time of its memory traffic at the speed of copies."

    def attention_row(self, setting: Attention, labels: dict[str, Any]) -> dict[str, Any]:
        runs = self.fitting(setting, {"plain": True, "ours": False})
        timings = by_turns(runs, self.device, self.args.repeats)
        ours, plain = timings.get("ours"), timings.get("plain")
        self.records.append({"part": "attention", **labels, "ours": _summary(ours), "plain": _summary(plain)})
        if ours is None:
            return {"forward, ms": "out of memory"}
        row = {f"{phase}, ms": 1e3 * ours.phases[phase] for phase in ("forward", "backward")}
        if self.device.type == "cuda":
            least = bound(setting, self.device)
            row |= {f"{phase} / bound": ours.phases[phase] / least[phase] for phase in least}
        return row | {"of plain": "plain is out of memory" if plain is None else ours.median / plain.median}

    def step(self) -> Iterator[Any]:
        yield self.whole_model("step", Step, STEPS, self.args.batch_sizes)
        yield "Busy: the share of the time in which the GPU computes; the rest it waits for the host."

    def inference(self) -> Iterator[Any]:
        yield self.whole_model("inference", Inference, INFERENCES, self.args.inference_batch_sizes)

    def whole_model(
        self, part: str, kind: type[Setting], variants: dict[str, Variant], batches: Sequence[int]
    ) -> list[dict[str, Any]]:
        rows = []
        for batch in batches:
            plain_seconds = None  # of the same precision
            for name, variant in tqdm(variants.items(), f"{part}, batch {batch}", leave=False, disable=None):
                setting = self.setting(kind, variant.overrides, batch)
                runs = self.fitting(setting, {"it": variant.plain})
                timing = by_turns(runs, self.device, self.args.repeats).get("it")
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
                peak = peak_bytes(setting, variant.plain, self.device)
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

    def setting(self, kind: type[Setting], overrides: Sequence[str], batch: int, *inputs: Any) -> Setting:
        changes = [*self.overrides, *overrides]
        return kind(self.args.config_file, changes, batch, self.args.image_size, OBJECTS, *inputs)

    def fitting(self, setting: Setting, names: dict[str, bool]) -> dict[str, Run]:
        """The formulations, whether they are plain by name, prepared; without those that do not fit into memory."""
        _free()
        runs: dict[str, Run] = {}
        for name, plain in names.items():
            try:
                run = setting.prepare(plain)
                run(Stopwatch(self.device))
                runs[name] = run
            except torch.cuda.OutOfMemoryError:
                run = None
                _free()
        return runs

    def busy(self, run: Run, seconds: float) -> str:
        """The share of a run's time in which the GPU computes."""
        if self.device.type != "cuda":
            return "no GPU"
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run(Stopwatch(self.device))
        computing = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
        return f"{min(computing / seconds, 1):.0%}"


def errors(inputs: tuple, dtype: torch.dtype) -> dict[str, Any]:
    """How far deformable attention, and its gradients, are from the plain formula in float64.

    Args:
        inputs: value (B, Σ h·w, H, D), shapes, locations (B, Lq, H, L, P, 2) and weights (B, Lq, H, L, P), on the
            device.
        dtype: of value and weights; both sides get what these are in it.

    Returns:
        The largest difference of each relative to the largest value, and whether all are within rounding.
    """
    value, shapes, locations, weights = inputs
    given = value.detach().to(dtype), locations.detach(), weights.detach().to(dtype)

    def output_and_gradients(function: Callable, tensors: Sequence[Tensor]) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        output = function(leaves[0], shapes, *leaves[1:])
        generator = torch.Generator().manual_seed(0)
        grad = torch.randn(output.shape, generator=generator).to(output.device, dtype)
        return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]

    found = output_and_gradients(getattr(attention, ATTENTION), given)
    expected = output_and_gradients(reference().deform_attn, [tensor.double() for tensor in given])
    names = ("output", "of value", "of locations", "of weights")
    largest = {
        name: float((ours.double() - exact).abs().max() / exact.abs().max())
        for name, ours, exact in zip(names, found, expected, strict=True)
    }
    limit = TOLERANCE * max(torch.finfo(dtype).eps, FLOAT32_ERROR)
    return largest | {"within rounding": "yes" if max(largest.values()) <= limit else "**no**"}


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _summary(timing: Timing | None) -> dict[str, Any] | None:
    return timing and timing.summary()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=CONFIG, metavar="CONFIG", help=f"default: {CONFIG}")
    parser.add_argument("--output", type=Path, default=Path("output/gpu"), metavar="FOLDER", help="default: output/gpu")
    parser.add_argument("--image-size", type=parse_size, default=(800, 1333), metavar="HxW", help="default: 800x1333")
    for name, default in {"--batch-sizes": [2, 4, 8, 16], "--inference-batch-sizes": [1, 16]}.items():
        parser.add_argument(name, type=positive, nargs="+", default=default, metavar="N")
    parser.add_argument("--repeats", type=positive, default=7, help="after one to warm up")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="key=value", help="changes of the config")
    args = parser.parse_args(argv)
    with errors_in_one_line():
        reference()
        Report(args).write()
