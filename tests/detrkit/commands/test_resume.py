"""A training that was interrupted and resumed is the one that was not: `tools/train_net.py --resume`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kills
import pytest
import torch

CONFIG = str(Path(__file__).with_name("mixed_config.py"))
TOOL = str(Path(__file__).resolve().parents[3] / "tools" / "train_net.py")


@pytest.fixture(scope="module")
def run_script(run_python):
    """`run_script(folder, "--kills=4")` runs `tests/stress/kills.py`."""
    return lambda folder, *words: run_python(kills.__file__, f"--output={folder}", *words, timeout=1800)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, run_script):
    """A folder in which the script has left an uninterrupted run, in `straight`."""
    folder = tmp_path_factory.mktemp("resume")
    result = run_script(folder, "--kills=0")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture
def folder(uninterrupted, monkeypatch):
    monkeypatch.setenv("MIXED_DATA", str(uninterrupted / "data"))
    return uninterrupted


def assert_same_run(folder, other):
    assert kills.same(kills.state(folder / "straight"), kills.state(other))
    assert kills.metrics(folder / "straight") == kills.metrics(other)


def test_killed_at_random_moments(tmp_path, run_script):
    """By SIGKILL, without data workers and with: nothing unreadable, no line lost, the same end to the bit."""
    result = run_script(tmp_path, "--kills=4", "--per-run=2")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kills" in result.stdout and "0 ended differently, 0 unreadable" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_a_hundred_times(tmp_path, run_script, processes):
    result = run_script(tmp_path, "--kills=100", f"--processes={processes}")
    assert result.returncode == 0, result.stdout + result.stderr


def start(out, *arguments, **kwargs):
    command = [sys.executable, TOOL, "--config-file", CONFIG, f"train.output_dir={out}", "--resume", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=environment, **pipes, **kwargs)


def resume(out, *arguments):
    process = start(out, *arguments)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.02)


def assert_resumes_to_the_same_end(straight, out, *arguments):
    """After a checkpoint of all of an iteration, `out` ends with the states and metrics of the run in `straight`."""
    last = (out / "last_checkpoint").read_text()
    assert torch.load(out / last, weights_only=True)["trainer"]["hooks"]["RunState"]["complete"]
    result = resume(out, *arguments)
    assert result.returncode == 0, result.stderr
    assert kills.same(kills.state(straight), kills.state(out))
    # There is one of the interruption besides.
    assert [row for row in kills.metrics(straight) if row not in kills.metrics(out)] == []


@pytest.mark.slow
def test_sigterm_saves_and_is_resumed_exactly(folder):
    """As clusters send it before they take a machine back: a checkpoint of the iteration under way, exit status 143."""
    out = folder / "terminated"
    process = start(out)
    wait_for(out / "model_0000003.pth", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert_resumes_to_the_same_end(folder / "straight", out)


@pytest.fixture(scope="module")
def straight_runs(uninterrupted, tmp_path_factory, run_script):
    """By number of processes, the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "data").symlink_to(uninterrupted / "data")
    result = run_script(folder, "--kills=0", "--processes=2")
    assert result.returncode == 0, result.stdout + result.stderr
    return {1: uninterrupted / "straight", 2: folder / "straight"}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_saves_and_is_resumed_exactly(folder, straight_runs, number, processes):
    """As schedulers, systemd and terminals send it: the data workers get it too, and must not die before the iteration
    is finished and saved."""
    out = folder / f"group_{number.name}_{processes}"
    options = ["dataloader.train.num_workers=2", "dataloader.test.num_workers=1", f"--num-gpus={processes}"]
    process = start(out, *options, start_new_session=True)
    wait_for(out / "model_0000003.pth", process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number and "Traceback" not in err and "error" not in err, err
    assert_resumes_to_the_same_end(straight_runs[processes], out, *options)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_data_worker_that_dies_leaves_a_checkpoint(folder, straight_runs, processes):
    """As when memory runs out: one line of error, and a checkpoint of the last whole iteration to go on from."""
    out = folder / f"dead_worker_{processes}"
    options = ["dataloader.train.num_workers=1", f"--num-gpus={processes}"]
    process = start(out, *options, start_new_session=True)
    wait_for(out / "model_0000003.pth", process)
    worker = data_workers(process.pid)[-1]  # with two processes, the second one's
    os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1 and line.startswith("error: DataLoader worker") and "Traceback" not in err
    assert str(worker) in line and "num_workers" in line and "--resume" in line
    assert (out / "last_checkpoint").read_text() in line
    assert_resumes_to_the_same_end(straight_runs[processes], out, *options)


def data_workers(pid):
    """Those of a run, whose processes it starts by spawning; a data worker is a fork."""
    ranks = [child for child in kills.children(pid) if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return sorted(worker for rank in ranks or [pid] for worker in kills.children(rank))


def copy_of(folder, name, upto=7):
    """A run of its own that stopped behind an iteration, as if killed there."""
    out = folder / name
    out.mkdir()
    for path in (folder / "straight").glob("model_00*.pth"):
        if int(path.stem[-7:]) <= upto:
            (out / path.name).write_bytes(path.read_bytes())
            when = time.time() - 1000 + int(path.stem[-7:])
            os.utime(out / path.name, (when, when))
    (out / "metrics.json").write_bytes((folder / "straight" / "metrics.json").read_bytes())
    (out / "last_checkpoint").write_text(f"model_{upto:07d}.pth")
    return out


@pytest.mark.parametrize(
    "harm, said",
    [
        ("missing", "names 'model_0000007.pth', which is not there: resuming from model_0000003.pth"),
        ("cut", "names 'model_0000007.pth', which is damaged"),
        ("flipped", "names 'model_0000007.pth', which is damaged"),
        ("elsewhere", "which is not there: resuming from model_0000007.pth"),
        ("empty", "last_checkpoint is missing or empty: resuming from model_0000007.pth"),
    ],
)
def test_the_newest_whole_checkpoint_is_found(folder, harm, said):
    """Instead of a traceback, or a run that starts anew over the checkpoints of the old one. A name that leads out of
    the folder is not followed, and a line of metrics.json that was cut short is taken away."""
    from detrkit.training.checkpoints import name_in_last_checkpoint, newest_checkpoint

    out = copy_of(folder, harm)
    newest, last = out / "model_0000007.pth", out / "last_checkpoint"
    content = newest.read_bytes()
    if harm == "missing":
        newest.unlink()
    elif harm == "cut":
        newest.write_bytes(content[: len(content) // 2])
    elif harm == "flipped":
        middle = len(content) // 2
        newest.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif harm == "elsewhere":
        last.write_text("../straight/model_final.pth")
    else:
        last.unlink()
    point = newest_checkpoint(out)
    assert said in point.remark and "\n" not in point.remark
    name_in_last_checkpoint(out, point)
    assert last.read_text() == point.name


@pytest.mark.slow
def test_a_damaged_run_is_resumed_to_the_same_end(folder):
    out = copy_of(folder, "damaged")
    (out / "model_0000007.pth").write_bytes(b"PK\x03\x04")
    with open(out / "metrics.json", "a") as file:
        file.write('{"iteration": 12, "tot')
    result = resume(out)
    assert result.returncode == 0, result.stderr
    assert "resuming from model_0000003.pth, the newest whole checkpoint" in result.stdout
    assert_same_run(folder, out)


def test_no_whole_checkpoint_is_an_error(folder, tmp_path):
    """Training anew would write over what may still be rescued."""
    (tmp_path / "model_0000003.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint in .* can be resumed from: 'model_0000003.pth' is damaged"):
        from detrkit.training.checkpoints import newest_checkpoint

        newest_checkpoint(tmp_path)


@pytest.mark.slow
def test_another_config_is_not_resumed_unasked(folder):
    """Somebody else's folder, or yesterday's experiment. What does no harm may differ."""
    out = copy_of(folder, "other")
    result = resume(out, "optimizer.lr=0.5", "train.log_period=5", "model.criterion.k=1")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert "model.criterion.k=1 (was " in line and "optimizer.lr=0.5 (was 0.0008)" in line
    assert "log_period" not in line and "--allow-changes" in line
    assert not (out / "config.yaml").exists() and not (out / "log.txt").exists(), "nothing was touched"
    result = resume(out, "optimizer.lr=0.5", "train.max_iter=9", "--allow-changes")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_another_batch_size_and_number_of_processes_go_on(folder):
    """And say what is not as it was."""
    out = copy_of(folder, "batch")
    result = resume(out, "dataloader.train.total_batch_size=4", "train.max_iter=10", "--num-gpus", "2")
    assert result.returncode == 0, result.stderr
    assert "Not as before: 2 process(es) now, 1 before" in result.stdout
    assert "Not as before: batches of 4 images now, 2 before" in result.stdout
    rows = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows][-2:] == [9, 10]
