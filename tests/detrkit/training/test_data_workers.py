"""Data workers and signals: `detrkit.training.data_workers` and what the training's loader does with it."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from detectron2.data import build_detection_train_loader
from torch.utils.data import DataLoader, Dataset

from detrkit.training.data_workers import PARENT_SECONDS, preload_workers, protect_workers, sigchld_restored
from detrkit.training.stream import ResumableLoader

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="needs signal.sigtimedwait")

ROOT = Path(__file__).resolve().parents[3]
IMAGES = [{"width": 2 + number % 3, "height": 3, "number": number} for number in range(7)]


def mapper(image):
    return {**image, "noise": torch.rand(()).item(), "pid": os.getpid()}


def build(workers, grouping=True, **options):
    def builder(workers):
        return lambda stream, collate: build_detection_train_loader(
            stream,
            mapper=None,
            total_batch_size=2,
            num_workers=workers,
            aspect_ratio_grouping=grouping,
            collate_fn=collate,
            **(options if workers else {}),
        )

    chunk = 1 if grouping else 2
    return ResumableLoader(IMAGES, mapper, builder(workers), build_in_process=builder(0), chunk=chunk)


def content(batches, count):
    return [[(item["number"], item["noise"]) for item in batch] for batch in itertools.islice(batches, count)]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def send_from_elsewhere(number, *pids):
    """As a scheduler or a terminal sends it: not the workers' parent."""
    subprocess.run(["kill", f"-{number.name.removeprefix('SIG')}", *map(str, pids)], check=True)


class Pids(Dataset):
    """Whose items are the process that reads them."""

    def __len__(self):
        return 40

    def __getitem__(self, number):
        return os.getpid()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_outlive_a_signal_to_all_processes(number):
    """The iteration that is to be finished, or an evaluation, needs them."""
    batches = iter(build(workers=2))
    pids = {item["pid"] for batch in itertools.islice(batches, 4) for item in batch} - {os.getpid()}
    loader = iter(protect_workers(DataLoader(Pids(), num_workers=1, prefetch_factor=1)))
    pids.add(next(loader).item())
    send_from_elsewhere(number, *pids)
    time.sleep(0.3)
    content(batches, 30)
    assert all(map(is_running, pids)) and len(pids) == 3
    assert set(map(int, loader)) <= pids


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a fork server")
def test_the_fork_server_outlives_a_signal_to_all_processes(monkeypatch):
    """It is the parent of the workers that it starts, which end when their parent ends."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "projects")]))
    preload_workers()
    batches = iter(build(workers=2, multiprocessing_context="forkserver"))
    pids = {item["pid"] for batch in itertools.islice(batches, 4) for item in batch}
    (server,) = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in pids}
    send_from_elsewhere(signal.SIGTERM, server, *pids)
    time.sleep(PARENT_SECONDS + 0.5)
    content(batches, 30)
    assert all(map(is_running, [server, *pids])) and len(pids) == 2


def test_a_worker_still_obeys_its_parent():
    """PyTorch ends a worker that hangs by SIGTERM, and Python waits for it at exit without a limit."""
    loader = iter(protect_workers(DataLoader(Pids(), num_workers=1)))
    pid = next(loader).item()
    with sigchld_restored():
        (process,) = loader._workers
        process.terminate()
        wait_until(lambda: not is_running(pid))


def read_for_ever(connection):
    batches = iter(build(workers=2))
    connection.send({item["pid"] for batch in itertools.islice(batches, 4) for item in batch})
    time.sleep(100)


def test_workers_end_when_their_parent_is_killed():
    """They would hold memory and files for as long as the machine runs."""
    context = multiprocessing.get_context("spawn")  # a fork would share the pipes of pytest-xdist
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=read_for_ever, args=(sender,))
    process.start()
    pids = receiver.recv()
    process.kill()
    process.join()
    wait_until(lambda: not any(map(is_running, pids)))
    assert len(pids) == 2


@pytest.mark.parametrize("grouping", [True, False])
def test_after_a_worker_died_the_same_batches_follow(grouping):
    """And until the next batch is read nothing raises, though PyTorch learns of it at once: it might be in the middle
    of an update."""
    plain, loader = build(workers=0, grouping=grouping), build(workers=2, grouping=grouping)
    loader.load_state_dicts([plain.state_dict()])
    expected = content(iter(plain), 12)
    batches = iter(loader)
    pid = next(batches)[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        time.sleep(0.01)  # SIGCHLD is handled between two of Python's instructions
    assert content(batches, 11) == expected[1:]
    assert str(pid) in loader.worker_death and "\n" not in loader.worker_death


def test_without_another_way_to_read_its_death_is_raised_by_the_next_batch():
    """Of a loader that a config makes itself."""
    loader = build(workers=1)
    loader._build_in_process = None
    batches = iter(loader)
    os.kill(next(batches)[0]["pid"], signal.SIGKILL)
    time.sleep(0.3)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        content(batches, 20)
