"""Measure a config part by part: criterion, attention, training step, inference, data loading, growth, runtimes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, product
from typing import Any

import torch
from detectron2.config import instantiate
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from align_detr._platform import describe
from detrkit.config.load import load_config
from detrkit.datasets.images import read_image
from detrkit.datasets.mapper import with_rgb_images
from detrkit.runtime.allocation import keep_freed_memory
from detrkit.runtime.device import device_name
from detrkit.training.builders import build_loader
from detrkit.training.loading import load_detector

from . import data_workers
from .augmentation import time_augmentations
from .memory import peak_bytes
from .runtimes import measure_runtimes, runtimes_table
from .stopwatch import Measurement, Stopwatch, by_turns, copy_bandwidth
from .tables import Record, augmentation_table, growth_lines, growth_table, per_image, seconds, table
from .workloads import (
    Attention,
    Criterion,
    Inference,
    Size,
    Step,
    Workload,
    attention_inputs,
    reference,
    synthetic_batch,
)

USUAL_PARTS = ("criterion", "attention", "step", "inference", "data")
PARTS = (*USUAL_PARTS, "augmentation", "workers", "growth", "runtimes")
MANY_BATCHES = (2, 4, 8, 16, 32)
GPU_BATCHES = (2, 4, 8, 16)
GROWING_BATCHES = (1, 2, 4)
GROWING_QUERIES = (0.25, 0.5, 1)  # shares of the config's number
OBJECTS = 7  # objects per image, the mean of COCO
DECODED = 20  # images
LARGE_COPY, CACHED_COPY = 1 << 30, 1 << 23  # bytes: many times a GPU's cache, and a part of it


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure.

    Attributes:
        config: name or path.
        overrides: `key=value`.
        parts: of `PARTS`.
        batch_sizes: empty for defaults that depend on part and device.
        image_sizes: (height, width) in pixels; empty for defaults that depend on part and device.
        objects: numbers of objects per image; the first is used where the number makes no difference.
        repeats: timed runs of each workload.
        reference: whether the plain formulations of tests/reference are timed as well.
        beside: `key=value` of a second config that is timed as well.

    Raises:
        ValueError: there is no such part, or it cannot be measured with `beside`.
    """

    config: str
    overrides: Sequence[str] = ()
    parts: Sequence[str] = USUAL_PARTS
    batch_sizes: Sequence[int] = ()
    image_sizes: Sequence[Size] = ()
    objects: Sequence[int] = tuple(n * OBJECTS for n in (1, 2, 4, 8))
    repeats: int = 7
    reference: bool = False
    beside: Sequence[str] = ()

    def __post_init__(self) -> None:
        if unknown := [part for part in self.parts if part not in PARTS]:
            raise ValueError(f"--parts: there is no {unknown[0]}; choose from {', '.join(PARTS)}")
        if self.beside and (alone := [part for part in ("growth", "runtimes") if part in self.parts]):
            raise ValueError(
                f"--parts {alone[0]} has no --beside: give it the option as its own, and compare the tables"
            )


class Benchmark:
    """The measurements of one config.

    Attributes:
        records: all figures so far.

    Raises:
        ValueError, OSError: the config or the checkpoint cannot be used.
        FileNotFoundError: `options.reference` outside a checkout.
    """

    def __init__(self, options: BenchmarkOptions):
        self.options = options
        if options.reference:
            reference()
        self.cfg = load_config(options.config, list(options.overrides))
        if options.beside:
            load_config(options.config, [*options.overrides, *options.beside])
        keep_freed_memory()
        self.model = load_detector(self.cfg, "", for_training=True)
        self.device = torch.device(self.cfg.train.device)
        self.on_gpu = self.device.type == "cuda"
        self.batch_sizes = options.batch_sizes or (GPU_BATCHES if self.on_gpu else (2,))
        self.image_sizes = options.image_sizes or ([(480, 640), (800, 1066)] if self.on_gpu else [(480, 640)])
        self.records: list[Record] = []

    def run(self) -> Iterator[str]:
        """Measure the parts in their order; yield a text for each step of the way."""
        device = device_name(self.cfg.train.device)
        yield describe()
        yield f"PyTorch {torch.__version__} on {device}, {self.options.repeats} repeats"
        for part in self.options.parts:
            yield f"\n{part}"
            yield from getattr(self, part)()

    def results(self) -> dict[str, Any]:
        """All figures, with what they are of, as plain data."""
        return {
            "config": self.options.config,
            "overrides": list(self.options.overrides),
            "device": device_name(self.cfg.train.device),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "repeats": self.options.repeats,
            "records": self.records,
        }

    def measure(self, part: str, workload: Workload, plain: bool, **labels: Any) -> Record:
        """Time and memory of a workload; with `plain` also of its reference, and with `beside` of the other config."""
        variants = {"ours": (workload, False)}
        if plain:
            variants["reference"] = workload, True
        if self.options.beside:
            variants["beside"] = replace(workload, overrides=[*workload.overrides, *self.options.beside]), False
        measurements = {name: variant.prepare(is_plain) for name, (variant, is_plain) in variants.items()}
        timings = by_turns(measurements, self.device, self.options.repeats)
        del measurements
        size = "x".join(map(str, workload.size))
        record = {"part": part, **labels, "batch": workload.batch, "image_size": size, "objects": workload.objects}
        for name, (variant, is_plain) in variants.items():
            record[name] = {**timings[name].summary(), "peak_bytes": peak_bytes(variant, is_plain, self.device)}
        self.records.append(record)
        return record

    def workload(self, kind: type[Workload], batch: int, size: Size, objects: int, *inputs: Any) -> Workload:
        overrides = [*self.options.overrides, f"train.device={self.device}"]
        return kind(self.options.config, overrides, batch, size, objects, *inputs)

    def criterion(self) -> Iterator[str]:
        with_reference = self.options.reference and reference().plain_criterion(self.model.criterion) is not None
        size = min(self.image_sizes)  # the criterion sees no images
        batches, (usual, *more) = self.options.batch_sizes or MANY_BATCHES, self.options.objects
        middle = sorted(batches)[len(batches) // 2]
        pairs = [(usual, batch) for batch in batches] + [(objects, middle) for objects in more]
        rows = []
        for objects, batch in progress(pairs, "criterion"):
            calls = self.criterion_calls(size, objects)
            workload = self.workload(Criterion, batch, size, objects, calls)
            rows.append(self.measure("criterion", workload, with_reference))
        yield table(rows, ("objects", "batch"), {"per image": lambda r: f"{1e3 * per_image(r):.2f} ms"})
        yield from growth_lines(rows, "objects", "batch", "images", per_image, "time per image")
        yield from growth_lines(rows, "batch", "objects", "objects per image", seconds, "time")
        if self.options.reference and not with_reference:
            yield f"no reference of {type(self.model.criterion).__name__} with these options"

    def runtimes(self) -> Iterator[str]:
        for size in self.image_sizes:
            found: dict[str, Record] = {}
            measured = measure_runtimes(
                self.cfg, self.model, self.cfg.train.init_checkpoint, size, self.options.repeats
            )
            for name, record in progress(measured, "runtimes"):
                found[name] = record
                labels = {"part": "runtimes", "runtime": name, "batch": 1, "image_size": "x".join(map(str, size))}
                self.records.append({**labels, **record})
            yield f"one image of {size[0]} x {size[1]} pixels, {torch.get_num_threads()} thread(s)"
            yield runtimes_table(found)

    def criterion_calls(self, size: Size, objects: int) -> list[tuple[tuple, dict]]:
        """The arguments of the criterion in a training step with one image."""
        calls: list[tuple[tuple, dict]] = []
        hook = self.model.criterion.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        with torch.no_grad():
            self.model(synthetic_batch(1, size, objects, self.model.num_classes))
        hook.remove()
        return calls

    def attention(self) -> Iterator[str]:
        rows = []
        for size in self.image_sizes:
            inputs = attention_inputs(self.model, synthetic_batch(1, size, OBJECTS, self.model.num_classes))
            for (layer, values), batch in progress(list(product(inputs.items(), self.batch_sizes)), "attention"):
                workload = self.workload(Attention, batch, size, OBJECTS, values)
                labels = {"layer": layer, "queries": values[2].shape[1]}
                rows.append(self.measure("attention", workload, self.options.reference, **labels))
                if self.on_gpu:
                    rows[-1]["bound_s"] = bound(workload, self.device)
        if not rows:
            yield "no deformable attention, or none that detrex calls by a public function"
            return
        columns: dict[str, Callable[[Record], Any]] = {}
        for phase in ("forward", "backward"):
            columns[phase] = lambda r, phase=phase: f"{1e3 * r['ours']['phases_s'][phase]:.2f} ms"
        for phase in ("forward", "backward") if self.on_gpu else ():
            columns[f"{phase} / bound"] = lambda r, phase=phase: r["ours"]["phases_s"][phase] / r["bound_s"][phase]
        yield table(rows, ("image_size", "layer", "queries", "batch"), columns)
        if self.on_gpu:
            memory, cached = bandwidths(self.device)
            yield f"copies: {memory / 1e9:.0f} GB/s from memory, {cached / 1e9:.0f} GB/s within the cache"
        else:
            yield "no GPU here: the times are not compared with the least time of the memory traffic"

    def step(self) -> Iterator[str]:
        rows = self.whole_model("step", Step)
        yield self.whole_model_table(rows)
        for record in rows:
            phases = record["ours"]["phases_s"]
            shares = ", ".join(f"{name} {value / sum(phases.values()):.0%}" for name, value in phases.items())
            yield f"{record['image_size']}, batch {record['batch']}: {shares}"

    def inference(self) -> Iterator[str]:
        yield self.whole_model_table(self.whole_model("inference", Inference))

    def whole_model(self, part: str, kind: type[Workload]) -> list[Record]:
        return [
            self.measure(part, self.workload(kind, batch, size, OBJECTS), self.options.reference)
            for size, batch in progress(list(product(self.image_sizes, self.batch_sizes)), part)
        ]

    def whole_model_table(self, rows: Sequence[Record]) -> str:
        columns = {"images/s": lambda r: f"{r['batch'] / seconds(r):.3g}"}
        if not self.on_gpu:  # on a busy machine the time that does not grow
            columns["processor time"] = lambda r: f"{r['ours']['processor_s']:.3g} s"
        return table(rows, ("image_size", "batch"), columns)

    def data(self) -> Iterator[str]:
        try:
            loader = build_loader(self.cfg, "train")
        except FileNotFoundError as error:
            if list(self.options.parts) == ["data"]:
                raise
            yield f"left out: {error}"
            return
        batches = iter(loader)
        per_batch = len(next(batches))
        for _ in islice(batches, self.options.repeats):  # batches that the workers have prefetched
            pass
        start = time.perf_counter()
        images = sum(len(batch) for batch in islice(batches, 4 * self.options.repeats))
        rate = images / (time.perf_counter() - start)
        workers = self.cfg.dataloader.train.get("num_workers", 0)
        record = {"part": "data", "batch": per_batch, "images_per_s": rate, "workers": workers}
        self.records.append(record)
        yield f"{rate:.3g} images/s in batches of {per_batch}, {workers} workers"
        steps = [r["batch"] / seconds(r) for r in self.records if r["part"] == "step"]
        if steps:
            yield f"{rate / max(steps):.3g} times the rate of the fastest step above"
        if {"dataset", "mapper"} <= set(self.cfg.dataloader.train):
            record |= self.one_process()
            share = record["one_process_per_s"] / record["decoded_per_s"]
            yield f"{record['one_process_per_s']:.3g} images/s in one process, {share:.2f} of decoding alone"

    def one_process(self) -> Record:
        """Images per second, mapped for training and only decoded; the same images, by turns."""
        data = self.cfg.dataloader.train
        images, mapper = instantiate(data.dataset)[:DECODED], with_rgb_images(instantiate(data.mapper))

        def over_images(function: Callable[[dict[str, Any]], Any]) -> Measurement:
            def run(watch: Stopwatch) -> None:
                for image in images:
                    function(image)
                watch.mark("images")

            return run

        decode = over_images(lambda image: read_image(image["file_name"]))
        measurements = {"one_process_per_s": over_images(mapper), "decoded_per_s": decode}
        timings = by_turns(measurements, torch.device("cpu"), self.options.repeats)
        return {name: len(images) / timing.median for name, timing in timings.items()}

    def augmentation(self) -> Iterator[str]:
        data = self.cfg.dataloader.train
        if not {"augmentation", "augmentation_with_crop"} <= set(data.get("mapper") or {}):
            raise ValueError("--parts augmentation: dataloader.train.mapper has no augmentation to replace")
        images = instantiate(data.dataset)[:DECODED]
        rows = list(time_augmentations(data.mapper, images, self.options.repeats))
        self.records += [{"part": "augmentation", "images": len(images), **row} for row in rows]
        yield augmentation_table(rows)

    def workers(self) -> Iterator[str]:
        if not data_workers.is_measurable():
            yield "left out: this system has no /proc/PID/smaps_rollup, from which shared memory is known"
            return
        size = data_workers.IMAGES, data_workers.BOXES
        cases = list(product(data_workers.METHODS, data_workers.COUNTS))
        rows = [data_workers.measure_workers(*case, *size) for case in progress(cases, "workers")]
        self.records += rows
        yield "annotations of {} images with {} boxes".format(*size)
        yield data_workers.workers_table(rows)

    def growth(self) -> Iterator[str]:
        rows = []
        for (cause, value), workload in progress(list(self.growing_workloads().items()), "growth"):
            labels = {"cause": cause, "value": value, "products": count_products(workload)}
            rows.append(self.measure("growth", workload, plain=False, **labels))
        yield growth_table(rows)

    def growing_workloads(self) -> dict[tuple[str, Any], Workload]:
        """`{(what grows, its value): workload}`, the smallest first; all else has the first value of its kind."""
        batches = self.options.batch_sizes or GROWING_BATCHES
        sizes = self.options.image_sizes or [(240, 320), *self.image_sizes]
        objects = self.options.objects
        base = {"batch": batches[0], "size": sizes[0], "objects": objects[0]}
        kinds = {"size": ("image size", sizes), "batch": ("batch", batches), "objects": ("objects", objects)}
        workloads = {
            (cause, "x".join(map(str, value)) if key == "size" else value): self.workload(Step, **{**base, key: value})
            for key, (cause, values) in kinds.items()
            for value in sorted(values)
        }
        queries = {name: value for name, value in self.cfg.model.items() if str(name).startswith("num_queries")}
        for share in GROWING_QUERIES if queries else ():
            fewer = {name: max(1, round(share * value)) for name, value in queries.items()}
            workload = self.workload(Step, **base)
            workload.overrides += [f"model.{name}={value}" for name, value in fewer.items()]
            workloads["queries", sum(fewer.values())] = workload
        return workloads


def count_products(workload: Workload) -> int:
    """Floating-point operations of the matrix products and convolutions of one run."""
    run = workload.prepare(plain=False)
    with FlopCounterMode(display=False) as counter:
        run(Stopwatch(torch.device("cpu")))
    return counter.get_total_flops()


def progress(workloads: Iterable[Any], part: str) -> Iterable[Any]:
    """`workloads` with a progress bar on a terminal."""
    return tqdm(workloads, desc=part, unit="workload", leave=False, disable=None)


def bound(workload: Attention, device: torch.device) -> dict[str, float]:
    """Least seconds of the memory traffic by phase, at the speed of copies: of memory or cache, the longer one."""
    memory, cached = bandwidths(device)
    return {phase: max(far / memory, near / cached) for phase, (far, near) in workload.traffic().items()}


@cache
def bandwidths(device: torch.device) -> tuple[float, float]:
    """Bytes per second of copies from memory, and within the cache."""
    return copy_bandwidth(device, LARGE_COPY), copy_bandwidth(device, CACHED_COPY)
