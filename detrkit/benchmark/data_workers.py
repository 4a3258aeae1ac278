"""Memory and start of data workers, with annotations as large as COCO's."""

from __future__ import annotations

import multiprocessing
import os
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import LazyCall
from detectron2.data import build_detection_train_loader
from detectron2.structures import BoxMode
from tabulate import tabulate

from detrkit.training.data_workers import preload_workers
from detrkit.training.stream import resumable_loader

from .tables import Record

PROC = Path("/proc")
IMAGES, BOXES = 118_000, 860_000  # of COCO's training split
SHARE_READ = 0.25  # of the images, before memory is measured
BATCH = 16
COUNTS = (1, 8)  # of workers
METHODS = ("fork", "forkserver")  # the default on Linux before Python 3.14, and since


def is_measurable() -> bool:
    """Whether this system reports proportional set sizes."""
    return (PROC / "self" / "smaps_rollup").exists()


def annotated_images(images: int, boxes: int) -> list[dict[str, Any]]:
    """Random annotations as `get_detection_dataset_dicts` returns them; the files do not exist."""
    random = np.random.default_rng(0)
    annotated: list[dict[str, Any]] = [
        {
            "file_name": f"datasets/coco/train2017/{number:012}.jpg",
            "height": 480,
            "width": 640,
            "image_id": number,
            "annotations": [],
        }
        for number in range(images)
    ]
    corners = random.uniform(0, 300, (boxes, 4)).round(2).tolist()
    owners, classes = random.integers(images, size=boxes).tolist(), random.integers(80, size=boxes).tolist()
    for owner, box, number in zip(owners, corners, classes, strict=True):
        annotated[owner]["annotations"].append(
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": number, "iscrowd": 0}
        )
    return annotated


def measure_workers(method: str, workers: int, images: int, boxes: int) -> Record:
    """Start the data workers of a training in a new process and let them read annotations.

    Args:
        method: how Python starts them, "fork", "forkserver" or "spawn".
        workers: their number.
        images, boxes: numbers of annotated images and of boxes on them.

    Returns:
        `start_s`, seconds until each of them has returned an image; `bytes`, the memory of the training process and
        all processes that it started, as the sum of their proportional set sizes.

    Raises:
        OSError: the process died.
    """
    context = multiprocessing.get_context("spawn")  # so that nothing of this process is counted
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_measurement, args=(sender, method, workers, images, boxes))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise OSError(f"the process with {workers} data workers died: it may have run out of memory") from None
    finally:
        process.join()


def _send_measurement(sender: Connection, method: str, workers: int, images: int, boxes: int) -> None:
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores

    multiprocessing.set_start_method(method, force=True)
    preload_workers()
    node = LazyCall(build_detection_train_loader)(mapper=_with_process_id, total_batch_size=BATCH, num_workers=workers)
    batches = iter(resumable_loader(node, annotated_images(images, boxes)))
    start = time.perf_counter()
    pids: set[int] = set()
    while len(pids) < workers:
        pids |= {example["process_id"] for example in next(batches)}
    seconds = time.perf_counter() - start
    for _ in islice(batches, int(SHARE_READ * images / BATCH)):
        pass
    family = [os.getpid(), *_descendants(os.getpid())]
    sender.send(
        {
            "part": "workers",
            "start_method": method,
            "workers": workers,
            "start_s": seconds,
            "bytes": sum(map(_proportional_set_size, family)),
        }
    )


def _with_process_id(image: dict[str, Any]) -> dict[str, Any]:
    return {**image, "process_id": os.getpid()}


def _descendants(pid: int) -> Iterator[int]:
    for children in PROC.glob(f"{pid}/task/*/children"):
        for child in map(int, children.read_text().split()):
            yield child
            yield from _descendants(child)


def _proportional_set_size(pid: int) -> int:
    """Bytes of a process, where a page that n processes share counts as 1/n of it in each."""
    summary = (PROC / str(pid) / "smaps_rollup").read_text()
    return 1024 * int(re.search(r"^Pss:\s+(\d+) kB", summary, re.MULTILINE)[1])


def workers_table(records: Sequence[Record]) -> str:
    """A line for each measurement; "×" is the ratio to the fewest workers of the same start method."""
    first: dict[str, Record] = {}
    rows = []
    for record in records:
        fewest = first.setdefault(record["start_method"], record)
        rows.append(
            {
                "started by": record["start_method"],
                "workers": record["workers"],
                "start": f"{record['start_s']:.2f} s",
                "memory of all": f"{record['bytes'] / 1e6:,.0f} MB",
                "×": record["bytes"] / fewest["bytes"],
            }
        )
    return tabulate(rows, headers="keys", floatfmt=".2f")
