"""Single images become batches: none is lost, none waits for long, and an error stays with its image."""

import threading
import time

import numpy as np
import pytest

from detrkit.serving.batching import Batcher


class Recorder:
    """A detector of numbers: image n has the detections 10 n. It records its batches, and fails on 13."""

    def __init__(self):
        self.batches = []
        self.may_run = threading.Event()
        self.may_run.set()

    def __call__(self, images):
        self.may_run.wait(10)
        values = [int(image[0]) for image in images]
        self.batches.append(values)
        if 13 in values:
            raise ValueError("13 is not taken")
        return [10 * value for value in values]


@pytest.fixture
def recorder():
    return Recorder()


def image(value):
    return np.array([value])


def test_images_that_wait_form_batches(recorder):
    """While the detector runs, arrivals collect; batches keep their order and their size."""
    batcher = Batcher(recorder, 4, 0.0)
    recorder.may_run.clear()
    first = batcher.submit(image(0))
    time.sleep(0.1)  # the first batch has begun
    others = [batcher.submit(image(n)) for n in range(1, 11)]
    recorder.may_run.set()
    assert [future.result(5) for future in [first, *others]] == [10 * n for n in range(11)]
    assert recorder.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    batcher.close()


def test_an_image_waits_for_others(recorder):
    """Two images that arrive within the wait share a batch; a full batch does not wait."""
    batcher = Batcher(recorder, 2, 5.0)
    begin = time.monotonic()
    futures = [batcher.submit(image(1)), batcher.submit(image(2))]
    assert [future.result(2) for future in futures] == [10, 20] and time.monotonic() - begin < 2
    assert recorder.batches == [[1, 2]]
    batcher.close()


def test_a_single_image_waits_briefly(recorder):
    batcher = Batcher(recorder, 8, 0.2)
    begin = time.monotonic()
    assert batcher.submit(image(3)).result(5) == 30
    assert 0.15 < time.monotonic() - begin < 3
    batcher.close()


def test_an_error_stays_with_its_image(recorder):
    batcher = Batcher(recorder, 4, 0.5)
    futures = [batcher.submit(image(n)) for n in (1, 13, 2, 3)]
    assert [futures[n].result(5) for n in (0, 2, 3)] == [10, 20, 30]
    with pytest.raises(ValueError, match="13 is not taken"):
        futures[1].result(5)
    assert recorder.batches == [[1, 13, 2, 3], [1], [13], [2], [3]]
    assert batcher.submit(image(4)).result(10) == 40
    batcher.close()


def test_closing_finishes_what_was_submitted(recorder):
    batcher = Batcher(recorder, 4, 0.0)
    recorder.may_run.clear()
    futures = [batcher.submit(image(n)) for n in range(9)]
    assert futures[8].cancel()  # a client that is gone
    closing = threading.Thread(target=batcher.close)
    closing.start()
    recorder.may_run.set()
    closing.join(10)
    assert not closing.is_alive() and [future.result(0) for future in futures[:8]] == [10 * n for n in range(8)]
    assert 8 not in [value for batch in recorder.batches for value in batch]


def test_many_threads(recorder):
    """From eight threads, each image gets its own detections."""
    batcher = Batcher(recorder, 5, 0.001)
    results = {}

    def submit(start):
        for n in range(start, start + 50):
            results[n] = batcher.submit(image(n)).result(10)

    threads = [threading.Thread(target=submit, args=(100 * k + 14,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(results) == 400 and all(value == 10 * n for n, value in results.items())
    assert max(map(len, recorder.batches)) <= 5 and len(recorder.batches) < 400
    batcher.close()
