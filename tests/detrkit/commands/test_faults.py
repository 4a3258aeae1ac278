"""What breaks around a training of `tools/train_net.py`: processes, workers, disks, numbers. One line each."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import mixed_data
import pytest
import torch

pytestmark = pytest.mark.slow  # each starts trainings of several processes, or waits for one that hangs

CONFIG = str(Path(__file__).with_name("mixed_config.py"))
TOOL = str(Path(__file__).resolve().parents[3] / "tools" / "train_net.py")
ENDLESS = ["train.max_iter=1000000", "train.eval_period=0", "train.log_period=1", "train.checkpointer.period=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "data"
    mixed_data.write(folder)
    return folder


@pytest.fixture
def start(data, tmp_path):
    """`start("key=value")` starts the tool with tmp_path for output; killed at the end of the test."""
    started = []

    def start(*arguments, environment=(), **kwargs):
        command = [sys.executable, TOOL, "--config-file", CONFIG, f"train.output_dir={tmp_path}/out", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MIXED_DATA": str(data), **dict(environment)}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipes, **kwargs))
        return started[-1]

    yield start
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.communicate()


def wait_for_line(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(process.stderr.read())


def error_of(process, timeout=100):
    """The one line on stderr that the tool ends with."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 1 and "Traceback" not in out + err, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    # A launcher has a line of its own for a process that was killed.
    assert len([line for line in lines if "terminated with signal" not in line]) == 1
    return lines[0].removeprefix("error: ")


def family(pid):
    """{pid: command line} of the processes below one."""
    found, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    generation = [pid]
    while generation:
        generation = [child for child, parent in parents.items() if parent in generation]
        found.update({child: Path(f"/proc/{child}/cmdline").read_bytes() for child in generation})
    return found


def ranks_of(process):
    """The processes of the run, without the launcher's helpers."""
    spawned = [pid for pid, command in family(process.pid).items() if b"spawn_main" in command]
    assert len(spawned) == 2
    return sorted(spawned)


@pytest.mark.parametrize("how", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGSTOP])
def test_a_process_that_dies_or_stops_ends_the_others(start, how):
    """Instead of waiting half an hour in a collective. Within a minute, and the line names the process."""
    process = start("--num-gpus", "2", *ENDLESS)
    wait_for_line(process, "iter: 3/")
    victim = ranks_of(process)[1]
    begin = time.monotonic()
    os.kill(victim, how)
    line = error_of(process, timeout=60)
    assert time.monotonic() - begin < 60
    assert re.search(r"process \d", line)
    if how == signal.SIGSTOP:
        assert f"(pid {victim}) is dead or stopped: last seen" in line


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others(start):
    """One that answers, but does not get on: the line says where it is stuck."""
    process = start("--num-gpus", "2", *ENDLESS, "train.hang_seconds=4", environment={"HANG_RANK": "1"})
    line = error_of(process, timeout=100)
    assert re.search(r"process 1 \(pid \d+\) hangs: \d+ s in reading data of iteration \d+, at mixed_data.py", line)


@pytest.mark.slow
def test_a_killed_data_worker_is_told_in_one_line(start):
    """As the kernel does it when memory runs out."""
    process = start(*ENDLESS, "dataloader.train.num_workers=1")
    wait_for_line(process, "iter: 3/")
    (worker,) = family(process.pid)
    os.kill(worker, signal.SIGKILL)
    line = error_of(process)
    assert f"pid(s) {worker}" in line or f"(pid {worker})" in line
    assert "num_workers" in line


def full_disk():
    """No file may become larger than this; more than the log, less than a checkpoint."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(start, tmp_path):
    assert start("train.max_iter=4").wait(timeout=100) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.pth")}
    line = error_of(start("--resume", "train.max_iter=8", preexec_fn=full_disk))
    assert "cannot write" in line and "File too large" in line and "as they were" in line
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.pth")}
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert start("--resume", "train.max_iter=8").wait(timeout=100) == 0


@pytest.mark.slow
def test_a_folder_that_vanishes_is_named(start, tmp_path):
    process = start("train.max_iter=1000", "train.checkpointer.period=20", "train.log_period=1", "train.eval_period=0")
    wait_for_line(process, "iter: 3/")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert f"{tmp_path}/out/" in error_of(process)


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named(start, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert f"{tmp_path}/out" in error_of(start())


@pytest.mark.parametrize("where", [pytest.param("loss", marks=pytest.mark.slow), "gradient"])
def test_what_is_not_finite_is_named_and_saved(start, tmp_path, where):
    """The layer, the images, the batch, and the last checkpoint as it was."""
    process = start("train.log_period=1", "train.checkpointer.period=2", environment={"POISON": where})
    line = error_of(process)
    assert "not finite at iteration 3" in line and "first in the " in line
    assert "transformer.encoder" in line and re.search(r"images \S+\.png, \S+\.png", line)
    saved = torch.load(tmp_path / "out/nonfinite_0000003_process_0.pth", weights_only=True)
    assert [item["image"].shape[0] for item in saved["batch"]] == [3, 3] and len(saved["images"]) == 2
    last = (tmp_path / "out/last_checkpoint").read_text()
    model = torch.load(tmp_path / "out" / last, weights_only=True)["model"]
    assert last == "model_0000001.pth" and all(tensor.isfinite().all() for tensor in model.values())


@pytest.mark.slow
def test_steps_that_are_not_finite_may_be_passed_over(start, tmp_path):
    """The training goes on, and its metrics have no line of such a step."""
    poison = {"POISON": "loss", "POISON_ONCE": "1"}
    process = start("train.skip_nonfinite=1", "train.log_period=1", environment=poison)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "Skipped a step, 1 in a row: the loss is not finite at iteration 3" in out
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [0, 1, 2, *range(4, 12)]
