"""Collect single images into batches."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from detrkit.inference import Detections


class Job(NamedTuple):
    """An image (H, W, 3) uint8 RGB, and its future detections."""

    pixels: np.ndarray
    future: Future[Detections]


class Batcher:
    """Run a detector in one thread, on batches of the images that several threads submit.

    The first image of a batch waits at most `max_wait` for others. Images that arrive while the detector runs form the
    next batch. If a batch fails, each of its images is tried alone, so only the faulty one gets the error.

    Args:
        detect: returns the detections of each image, in order.
        batch_size: most images of a batch.
        max_wait: seconds.
    """

    def __init__(
        self, detect: Callable[[Sequence[np.ndarray]], Sequence[Detections]], batch_size: int, max_wait: float
    ):
        self._detect = detect
        self._batch_size = batch_size
        self._max_wait = max_wait
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: the end
        self._thread = threading.Thread(target=self._work, name="detector", daemon=True)
        self._thread.start()

    def submit(self, pixels: np.ndarray) -> Future[Detections]:
        """Add an image to the next batch. Its future has the detections, or the detector's error."""
        future: Future[Detections] = Future()
        self._jobs.put(Job(pixels, future))
        return future

    def close(self) -> None:
        """Finish the images that were submitted, and end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._collect()
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if batch:
                self._run(batch)

    def _collect(self) -> tuple[list[Job], bool]:
        """The next batch, and whether more may follow."""
        job = self._jobs.get()
        batch: list[Job] = []
        end = time.monotonic() + self._max_wait
        while job is not None:
            batch.append(job)
            if len(batch) == self._batch_size:
                return batch, True
            try:
                job = self._jobs.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return batch, True
        return batch, False

    def _run(self, batch: Sequence[Job]) -> None:
        try:
            found = self._detect([job.pixels for job in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for job in batch:
                self._run([job])
            return
        for job, detections in zip(batch, found, strict=True):
            job.future.set_result(detections)
