"""Time a config's criterion, deformable attention, training step, inference and data loading on this device.

    align-detr benchmark --config-file CONFIG [--parts criterion attention step inference data growth]
        [--batch-sizes 2 4 8] [--image-sizes 480x640] [--objects 7 14 28 56] [--repeats 7] [--reference]
        [--beside key=value]... [--json FILE] [key=value ...]

    criterion   the losses with their matching, forward and backward, of random predictions in the detector's shapes
    attention   deformable attention alone, forward and backward, on what the first such layer of encoder and decoder
                gets; on a GPU also against the time that its memory traffic takes at least
    step        of align-detr train: forward, backward, clipping, optimizer; and the share of each part
    inference   from a batch of images to detections
    data        `dataloader.train`, with nothing else to do; and what one process makes of its images, beside decoding
    growth      how a training step's time, its criterion's and its memory grow with image size, batch, objects and
                queries, one at a time from the first of each; beside the operations of its products of matrices

Images are noise, and objects lie anywhere, except for `data`. Times are medians after a warm-up, ± the interquartile
range. Memory is what a run needs at its peak, on a GPU by PyTorch's allocator, on Linux by a process of its own; for
step and inference that includes the model. `--reference` runs the plain formulations of tests/reference by turns with
ours in the same process, and `--beside` the same with other options, such as train.amp.enabled=False; "of reference"
and "of beside" are ours divided by theirs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from align_detr._platform import describe
from detrkit.benchmark.stopwatch import Run, Stopwatch, by_turns, copy_bandwidth
from detrkit.benchmark.workloads import (
    Attention,
    Criterion,
    Inference,
    Setting,
    Size,
    Step,
    attention_inputs,
    peak_bytes,
    reference,
    synthetic_batch,
)
from detrkit.commands.command_line import errors_in_one_line, take_overrides
from detrkit.config.load import load_config
from detrkit.datasets.images import read_image
from detrkit.datasets.mapper import with_rgb_images
from detrkit.runtime.allocation import keep_freed_memory
from detrkit.runtime.device import device_name
from detrkit.training.builders import build_loader
from detrkit.training.loading import load_detector

USUAL_PARTS = ("criterion", "attention", "step", "inference", "data")
PARTS = (*USUAL_PARTS, "growth")
MANY_BATCHES = (2, 4, 8, 16, 32)
GPU_BATCHES = (2, 4, 8, 16)
GROWING_BATCHES = (1, 2, 4)
GROWING_QUERIES = (0.25, 0.5, 1)  # of the config's
OBJECTS = 7  # per image, COCO's mean, where their number makes no difference
DECODED = 20  # images
LARGE_COPY, CACHED_COPY = 1 << 30, 1 << 23  # bytes: many times a GPU's cache, and a part of it
Record = dict[str, Any]


class Benchmark:
    """Measures part by part, and prints a table for each. `records` holds the same for machines."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.cfg = load_config(args.config_file, args.opts)
        keep_freed_memory()
        self.model = load_detector(self.cfg, "", for_training=True)
        self.device = torch.device(self.cfg.train.device)
        self.overrides = [*args.opts, f"train.device={self.device}"]
        self.on_gpu = self.device.type == "cuda"
        self.batch_sizes = args.batch_sizes or (GPU_BATCHES if self.on_gpu else (2,))
        self.sizes = args.image_sizes or ([(480, 640), (800, 1066)] if self.on_gpu else [(480, 640)])
        self.records: list[Record] = []

    def run(self) -> None:
        for part in self.args.parts:
            print(f"\n{part}", flush=True)
            getattr(self, part)()

    def measure(self, part: str, setting: Setting, plain: bool, **labels: Any) -> Record:
        """Time and memory of a setting, if `plain` beside those of its reference, and with the options of --beside."""
        variants = {"ours": (setting, False)}
        if plain:
            variants["reference"] = setting, True
        if self.args.beside:
            variants["beside"] = replace(setting, overrides=[*setting.overrides, *self.args.beside]), False
        runs = {name: variant.prepare(is_plain) for name, (variant, is_plain) in variants.items()}
        timings = by_turns(runs, self.device, self.args.repeats)
        del runs
        size = "x".join(map(str, setting.size))
        record = {"part": part, **labels, "batch": setting.batch, "image_size": size, "objects": setting.objects}
        for name, (variant, is_plain) in variants.items():
            record[name] = {**timings[name].summary(), "peak_bytes": peak_bytes(variant, is_plain, self.device)}
        self.records.append(record)
        return record

    def step_of_one_image(self, size: Size, objects: int) -> None:
        with torch.no_grad():
            self.model(synthetic_batch(1, size, objects, self.model.num_classes))

    def setting(self, kind: type[Setting], batch: int, size: Size, objects: int, *inputs: Any) -> Setting:
        return kind(self.args.config_file, self.overrides, batch, size, objects, *inputs)

    def criterion(self) -> None:
        plain = self.args.reference and reference().plain_criterion(self.model.criterion) is not None
        size = min(self.sizes)  # of no consequence for what the criterion sees
        batches, (usual, *more) = self.args.batch_sizes or MANY_BATCHES, self.args.objects
        middle = sorted(batches)[len(batches) // 2]
        settings = [(usual, batch) for batch in batches] + [(objects, middle) for objects in more]
        rows = []
        for objects, batch in progress(settings, "criterion"):
            calls = self.criterion_calls(size, objects)
            rows.append(self.measure("criterion", self.setting(Criterion, batch, size, objects, calls), plain))
        table(rows, ("objects", "batch"), {"per image": lambda r: f"{1e3 * per_image(r):.2f} ms"})
        say_growth(rows, "objects", "batch", "images", per_image, "time per image")
        say_growth(rows, "batch", "objects", "objects per image", seconds, "time")
        if self.args.reference and not plain:
            print(f"no reference of {type(self.model.criterion).__name__} with these options")

    def criterion_calls(self, size: Size, objects: int) -> list[tuple[tuple, dict]]:
        """The arguments that the criterion gets in a step with one image."""
        calls: list[tuple[tuple, dict]] = []
        hook = self.model.criterion.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        self.step_of_one_image(size, objects)
        hook.remove()
        return calls

    def attention(self) -> None:
        rows = []
        for size in self.sizes:
            inputs = attention_inputs(self.model, synthetic_batch(1, size, OBJECTS, self.model.num_classes))
            for (where, given), batch in progress(list(product(inputs.items(), self.batch_sizes)), "attention"):
                setting = self.setting(Attention, batch, size, OBJECTS, given)
                labels = {"layer": where, "queries": given[2].shape[1]}
                rows.append(self.measure("attention", setting, self.args.reference, **labels))
                if self.on_gpu:
                    rows[-1]["bound_s"] = bound(setting, self.device)
        if not rows:
            print("no deformable attention, or none that detrex calls by a public function")
            return
        columns = {
            phase: lambda r, phase=phase: f"{1e3 * r['ours']['phases_s'][phase]:.2f} ms"
            for phase in ("forward", "backward")
        }
        if self.on_gpu:
            columns |= {
                f"{phase} / bound": lambda r, phase=phase: r["ours"]["phases_s"][phase] / r["bound_s"][phase]
                for phase in ("forward", "backward")
            }
        table(rows, ("image_size", "layer", "queries", "batch"), columns)
        if not self.on_gpu:
            print("no GPU here: the time that memory traffic takes at least is not compared with")

    def step(self) -> None:
        rows = self.whole_model("step", Step)
        for record in rows:
            phases = record["ours"]["phases_s"]
            shares = ", ".join(f"{name} {value / sum(phases.values()):.0%}" for name, value in phases.items())
            print(f"{record['image_size']}, batch {record['batch']}: {shares}")

    def inference(self) -> None:
        self.whole_model("inference", Inference)

    def whole_model(self, part: str, kind: type[Setting]) -> list[Record]:
        rows = [
            self.measure(part, self.setting(kind, batch, size, OBJECTS), self.args.reference)
            for size, batch in progress(list(product(self.sizes, self.batch_sizes)), part)
        ]
        table(rows, ("image_size", "batch"), {"images/s": lambda r: f"{r['batch'] / seconds(r):.3g}"})
        return rows

    def data(self) -> None:
        try:
            loader = build_loader(self.cfg, "train")
        except FileNotFoundError as error:
            if self.args.parts == ["data"]:
                raise
            print(f"left out: {error}")
            return
        batches = iter(loader)
        per_batch = len(next(batches))
        for _ in islice(batches, self.args.repeats):  # what the workers have prefetched by then
            pass
        start = time.perf_counter()
        images = sum(len(batch) for batch in islice(batches, 4 * self.args.repeats))
        rate = images / (time.perf_counter() - start)
        record = {"part": "data", "batch": per_batch, "images_per_s": rate, "workers": loader_workers(self.cfg)}
        self.records.append(record)
        print(f"{rate:.3g} images/s in batches of {per_batch}, {record['workers']} workers")
        steps = [r["batch"] / seconds(r) for r in self.records if r["part"] == "step"]
        if steps:
            print(f"{rate / max(steps):.3g} times what the fastest step above takes")
        if {"dataset", "mapper"} <= set(self.cfg.dataloader.train):
            record |= self.one_process()
            share = record["one_process_per_s"] / record["decoded_per_s"]
            print(f"{record['one_process_per_s']:.3g} images/s in one process, {share:.2f} of decoding alone")

    def growth(self) -> None:
        rows = []
        for (cause, value), setting in progress(list(self.growing().items()), "growth"):
            labels = {"cause": cause, "value": value, "products": count_products(setting)}
            rows.append(self.measure("growth", setting, plain=False, **labels))
        print(tabulate(grown(rows), headers="keys", floatfmt=".2f"), flush=True)

    def growing(self) -> dict[tuple[str, Any], Setting]:
        """By what grows and how large it is, the smallest first; all else as the first of its kind."""
        batches = self.args.batch_sizes or GROWING_BATCHES
        sizes = self.args.image_sizes or [(240, 320), *self.sizes]
        base = {"batch": batches[0], "size": sizes[0], "objects": self.args.objects[0]}
        kinds = {"size": ("image size", sizes), "batch": ("batch", batches), "objects": ("objects", self.args.objects)}
        settings = {
            (cause, "x".join(map(str, value)) if key == "size" else value): self.setting(Step, **{**base, key: value})
            for key, (cause, values) in kinds.items()
            for value in sorted(values)
        }
        queries = {name: value for name, value in self.cfg.model.items() if str(name).startswith("num_queries")}
        for share in GROWING_QUERIES if queries else ():
            fewer = {name: max(1, round(share * value)) for name, value in queries.items()}
            setting = self.setting(Step, **base)
            setting.overrides = [*self.overrides, *(f"model.{name}={value}" for name, value in fewer.items())]
            settings["queries", sum(fewer.values())] = setting
        return settings

    def one_process(self) -> Record:
        """Images per second, mapped for training, and only decoded; the same ones, by turns."""
        data = self.cfg.dataloader.train
        images, mapper = instantiate(data.dataset)[:DECODED], with_rgb_images(instantiate(data.mapper))

        def over_images(do: Callable[[dict[str, Any]], Any]) -> Run:
            def run(watch: Stopwatch) -> None:
                for image in images:
                    do(image)
                watch.mark("images")

            return run

        runs = {"one_process_per_s": over_images(mapper), "decoded_per_s": over_images(decode)}
        timings = by_turns(runs, torch.device("cpu"), self.args.repeats)
        return {name: len(images) / timing.median for name, timing in timings.items()}


def count_products(setting: Setting) -> int:
    """Floating-point operations of the products of matrices and the convolutions of one run."""
    run = setting.prepare(plain=False)
    with FlopCounterMode(display=False) as counter:
        run(Stopwatch(torch.device("cpu")))
    return counter.get_total_flops()


def grown(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows of a table: each cost, and how many times that of the least of what makes it grow."""
    rows = []
    for cause in dict.fromkeys(record["cause"] for record in records):
        line = [record for record in records if record["cause"] == cause]
        for record in line:
            row = {"what grows": cause, "": record["value"], "step": spread(record["ours"])}
            row |= {"peak memory": megabytes(record["ours"])}
            for name, cost in COSTS.items():
                first = cost(line[0])
                row[f"{name} ×"] = cost(record) / first if first else None
            rows.append(row)
    return rows


def progress(settings: Sequence[Any], part: str) -> Iterable[Any]:
    return tqdm(settings, desc=part, unit="setting", leave=False, disable=None)


def bound(setting: Attention, device: torch.device) -> dict[str, float]:
    """Seconds that the traffic takes at the speed of copies: the longer of memory's and the cache's."""
    memory, cached = _bandwidths(device)
    return {phase: max(far / memory, near / cached) for phase, (far, near) in setting.traffic().items()}


@cache
def _bandwidths(device: torch.device) -> tuple[float, float]:
    rates = copy_bandwidth(device, LARGE_COPY), copy_bandwidth(device, CACHED_COPY)
    print(f"copies: {rates[0] / 1e9:.0f} GB/s from memory, {rates[1] / 1e9:.0f} GB/s within the cache")
    return rates


def decode(image: dict[str, Any]) -> None:
    read_image(image["file_name"])


def loader_workers(cfg: DictConfig) -> int:
    return cfg.dataloader.train.get("num_workers", 0)


def seconds(record: Record) -> float:
    return record["ours"]["median_s"]


def per_image(record: Record) -> float:
    return seconds(record) / record["batch"]


COSTS: dict[str, Callable[[Record], float | None]] = {
    "step": seconds,
    "criterion": lambda record: record["ours"]["phases_s"]["criterion"],
    "memory": lambda record: record["ours"]["peak_bytes"],
    "products": lambda record: record["products"],
}


def table(rows: Sequence[Record], keys: Sequence[str], columns: dict[str, Callable[[Record], Any]]) -> None:
    """Print the rows: the values of `keys`, time and memory, `columns`, and what they were timed by turns with."""
    cells = []
    for record in rows:
        ours = record["ours"]
        row = {key.replace("_", " "): record[key] for key in keys}
        row |= {"time": spread(ours), "peak memory": megabytes(ours)}
        row |= {name: value(record) for name, value in columns.items()}
        for name in ("reference", "beside"):
            if other := record.get(name):
                row |= {name: spread(other), f"memory, {name}": megabytes(other)}
                row[f"time of {name}"] = ours["median_s"] / other["median_s"]
                if other["peak_bytes"]:
                    row[f"memory of {name}"] = ours["peak_bytes"] / other["peak_bytes"]
        cells.append(row)
    print(tabulate(cells, headers="keys", floatfmt=".2f"), flush=True)


def spread(measured: dict[str, Any]) -> str:
    return f"{1e3 * measured['median_s']:.4g} ± {1e3 * measured['iqr_s']:.2g} ms"


def megabytes(measured: dict[str, Any]) -> str:
    return "unknown" if measured["peak_bytes"] is None else f"{measured['peak_bytes'] / 1e6:,.0f} MB"


def say_growth(
    rows: Sequence[Record],
    fixed: str,
    varied: str,
    unit: str,
    value: Callable[[Record], float],
    what: str,
) -> None:
    """Say how `value` changes from the smallest to the largest `varied`, for each value of `fixed`."""
    for at in sorted({record[fixed] for record in rows}):
        line = sorted((record for record in rows if record[fixed] == at), key=lambda record: record[varied])
        first, last = line[0], line[-1]
        if first is not last:
            ratios = [value(record) / value(first) for record in line]
            print(
                f"{fixed} {at}: from {first[varied]} to {last[varied]} {unit}, {what} × {ratios[-1]:.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


def parse_size(text: str) -> Size:
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text} is no image size, such as 480x640, height before width")
    return int(height), int(width)


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 up")
    return int(text)


def typed(words: Iterable[str], parse: Callable[[str], Any], option: str) -> list[Any]:
    """The words of an option that takes any number of them.

    Raises:
        ValueError: one of them is none of its values.
    """
    try:
        return [parse(word) for word in words]
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{option}: {error}") from None


def check(args: argparse.Namespace) -> None:
    """Sort the overrides out of the options, and turn words into numbers."""
    for words in (args.parts, args.batch_sizes, args.image_sizes, args.objects):
        take_overrides(words, args.opts)
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        raise ValueError(f"--parts: there is no {unknown[0]}; choose from {', '.join(PARTS)}")
    args.batch_sizes = typed(args.batch_sizes, positive, "--batch-sizes")
    args.image_sizes = typed(args.image_sizes, parse_size, "--image-sizes")
    args.objects = typed(args.objects, positive, "--objects")
    if args.reference:
        reference()
    if args.beside:
        if "growth" in args.parts:
            raise ValueError("--parts growth has no --beside: give it the option as its own, and compare the tables")
        load_config(args.config_file, [*args.opts, *args.beside])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="as for align-detr train")
    parser.add_argument(
        "--parts", nargs="+", default=list(USUAL_PARTS), metavar="PART", help="what to time; default: all but growth"
    )
    parser.add_argument(
        "--batch-sizes",
        nargs="+",
        default=[],
        metavar="N",
        help="default: 2 to 32 for the criterion, 1 to 4 for growth, else 2, or to 16",
    )
    parser.add_argument(
        "--image-sizes",
        nargs="+",
        default=[],
        metavar="HxW",
        help="default: 480x640; on a GPU 800x1066 too; for growth 240x320 first",
    )
    parser.add_argument(
        "--objects",
        nargs="+",
        default=[str(n * OBJECTS) for n in (1, 2, 4, 8)],
        metavar="N",
        help="per image, for the criterion: all batch sizes with the first, the others with the middle batch size",
    )
    parser.add_argument("--repeats", type=positive, default=7, help="after one to warm up")
    parser.add_argument("--reference", action="store_true", help="time the plain formulations as well")
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="key=value",
        help="time the same with this changed too, by turns; may be given again",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="key=value", help="changes of the config")
    args = parser.parse_args(argv)
    with errors_in_one_line():
        check(args)
        benchmark = Benchmark(args)
        print(describe())
        print(f"PyTorch {torch.__version__} on {device_name(benchmark.cfg.train.device)}, {args.repeats} repeats")
        benchmark.run()
        if args.json:
            device = device_name(benchmark.cfg.train.device)
            about = {"config": args.config_file, "overrides": args.opts, "device": device}
            about |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "repeats": args.repeats}
            args.json.write_text(json.dumps({**about, "records": benchmark.records}, indent=1))
