"""The output folder belongs to one training: what is refused, and that a refusal changes nothing there."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from detrkit import load_config, train
from detrkit.commands import make_data
from detrkit.training import folder_lock
from detrkit.training.folder import write_folder_config
from detrkit.training.folder_lock import LOCK, output_folder_locked

TOY = str(Path(__file__).parents[1] / "commands" / "toy_config.py")
OTHER_PROCESS = """
import fcntl, sys, time
file = open(sys.argv[1], "a+b")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write(b"process 4711 on elsewhere")
file.flush()
print("locked", flush=True)
time.sleep(100)
"""


def toy(folder, *overrides):
    return load_config(TOY, [f"train.output_dir={folder}", *overrides])


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def other_process(tmp_path):
    """A process that trains in tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", OTHER_PROCESS, tmp_path / LOCK], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path, other_process):
    """Protects two trainings from each other. A killed process leaves the file, and no lock."""
    with pytest.raises(ValueError, match="in use by the training of process 4711 on elsewhere: .*train.output_dir="):
        train(toy(tmp_path))
    assert list(content(tmp_path)) == [Path(LOCK)]
    other_process.kill()
    other_process.wait()
    train(toy(tmp_path, "train.max_iter=1"))
    assert not (tmp_path / LOCK).exists() and (tmp_path / "model_final.pth").exists()


def test_a_thread_locks_again_and_another_does_not(tmp_path):
    """Protects servers: POSIX locks do not hold within a process."""
    errors = []

    def lock():
        try:
            with output_folder_locked(tmp_path / "run"):
                pass
        except ValueError as error:
            errors.append(str(error))

    with output_folder_locked(tmp_path / "run"), output_folder_locked(tmp_path / "run"):
        thread = threading.Thread(target=lock)
        thread.start()
        thread.join()
    assert len(errors) == 1 and "which is this one" in errors[0]
    lock()
    assert len(errors) == 1 and not (tmp_path / "run").exists(), "an empty folder does not stay"


def test_folders_that_cannot_be_locked_are_used_all_the_same(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "lockf", no_locks)
    with output_folder_locked(tmp_path):
        pass
    monkeypatch.setattr(folder_lock, "fcntl", None)
    with output_folder_locked(tmp_path):
        assert not list(tmp_path.iterdir())


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Two folders of images, and the output folder of a training on the first one."""
    from detrkit.training import checkpoints

    monkeypatch.chdir(tmp_path)
    make_data.main(["--synthetic", "--train", "4", "--val", "2", "--output", "mine"])
    make_data.main(["--synthetic", "--train", "5", "--val", "3", "--output", "other"])
    write_folder_config(Path("mine"), "align_detr_tiny", ["train.output_dir=out"])
    (tmp_path / "out/model_final.pth").write_bytes(b"")
    config = {"optimizer.lr": "0.0008"}
    point = checkpoints.ResumePoint("model_final.pth", 3, {"RunState": {"facts": {"config": config}}}, "")
    monkeypatch.setattr("detrkit.training.folder.find_checkpoint", lambda folder: point)
    return tmp_path


@pytest.mark.parametrize("folder, overrides, message", [
    ("other", [], "other or --classes are not as they were"),
    ("mine", ["optimizer.lr=0.5"], "of a training with another config"),
    ("mine", ["model.num_classes=2"], r"model.num_classes=2, but the images have 3 classes \(circle, square, triangle"),
    ("mine", ["dataloader.train.total_batch_size=0"], "total_batch_size=0: expected an integer from 1 up"),
    ("mine", ["train.device=cuda:7"], "train.device=cuda:7 is not available"),
    ("mine", ["train.max_iter=3"], "model_final.pth has 4 iterations already: train.max_iter=3 is too small"),
])  # fmt: skip
def test_a_refused_resume_changes_nothing(begun, folder, overrides, message):
    """Protects the data and the config of the other training."""
    before = content(begun / "out")
    with pytest.raises(ValueError, match=message):
        write_folder_config(Path(folder), "align_detr_tiny", ["train.output_dir=out", *overrides], resume=True)
    assert content(begun / "out") == before


def test_values_are_refused_before_the_images_are_read(begun, monkeypatch):
    monkeypatch.setattr("detrkit.training.folder._converted", lambda *args: pytest.fail("the images were read"))
    for override, message in (
        ("train.device=cuda:7", "cuda:7 is not available"),
        ("train.init_checkpoint=gone.pth", "gone.pth"),
        ("train.max_iter=-3", "train.max_iter=-3: expected"),
        ("optimizer.lr=-0.1", "optimizer.lr=-0.1: expected a finite number from 0 up"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            write_folder_config(Path("mine"), "align_detr_tiny", ["train.output_dir=new", override])
    assert not (begun / "new").exists()


def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch):
    """Before anything is written; the line says what to do without a network."""
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("detectron2.utils.file_io.PathManager.get_local_path", offline)
    url = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    with pytest.raises(OSError, match=rf"cannot download {url} \(no route to host\): .*train.init_checkpoint=FILE"):
        train(toy(tmp_path / "run", f"train.init_checkpoint={url}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", [
    "train.max_iter=0", "train.max_iter=-1", "train.max_iter=2.5", "train.log_period=0", "train.log_period=-5",
    "train.eval_period=-1", "train.checkpointer.period=-2", "train.checkpointer.max_to_keep=0",
    "train.accumulate=0", "+dataloader.train.total_batch_size=-4",
])  # fmt: skip
def test_values_out_of_range(tmp_path, override):
    """They ended in a traceback, or "trained" without an error."""
    with pytest.raises(ValueError, match=f"{override.lstrip('+')}: expected an integer from [01] up"):
        train(toy(tmp_path / "run", override))
    assert not (tmp_path / "run").exists()


def test_periods_of_zero_and_null_mean_what_the_configs_say(tmp_path):
    overrides = ["train.eval_period=0", "train.checkpointer.period=0", "train.checkpointer.max_to_keep=null"]
    train(toy(tmp_path, "train.max_iter=2", *overrides))
    assert [path.name for path in tmp_path.glob("model_0*")] == []


def test_resuming_a_complete_training_changes_nothing(tmp_path, capsys):
    """One line that says so, and the results of the last evaluation; a longer training goes on."""
    results = train(toy(tmp_path, "train.max_iter=4"))
    before = content(tmp_path)
    capsys.readouterr()
    again = train(toy(tmp_path, "train.max_iter=4"), resume=True)
    assert again == {task: pytest.approx(metrics) for task, metrics in results.items()}
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "is complete: 4 iterations" in out and "train.max_iter" in out
    assert content(tmp_path) == before
    train(toy(tmp_path, "train.max_iter=5"), resume=True)
    assert json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])["iteration"] == 5


def test_a_training_without_its_last_evaluation_is_not_complete(tmp_path):
    """Killed between the last checkpoint and the evaluation: the evaluation is made up for."""
    train(toy(tmp_path, "train.max_iter=4"))
    metrics = tmp_path / "metrics.json"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:-1]))
    train(toy(tmp_path, "train.max_iter=4"), resume=True)
    last, removed = json.loads(metrics.read_text().splitlines()[-1]), json.loads(lines[-1])
    assert last["iteration"] == 4 and last["bbox/AP"] == removed["bbox/AP"]


def test_files_of_the_user_are_not_replaced(tmp_path, monkeypatch):
    """Annotations in `data/`, a config.py of another kind, the dataset itself: each is refused, and stays as it is."""
    monkeypatch.chdir(tmp_path)
    make_data.main(["--synthetic", "--train", "4", "--val", "2", "--output", "mine"])
    for name, text in (("annotated/data/train.json", "{}"), ("configured/config.py", "lr = 1")):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    before = content(tmp_path)
    for output, message in (
        ("annotated", r"annotated/data/train.json is not of a training with --data.*another train.output_dir"),
        ("configured", "configured/config.py is not of a training with --data"),
        ("mine", "mine is the dataset's own folder"),
        ("mine/out", "mine/out lies in the dataset's folder"),
    ):
        with pytest.raises(ValueError, match=message):
            write_folder_config(Path("mine"), "align_detr_tiny", [f"train.output_dir={output}"], overwrite=True)
    assert content(tmp_path) == before


def test_a_shorter_training_is_said(tmp_path):
    train(toy(tmp_path, "train.max_iter=3", "train.checkpointer.period=1", "train.checkpointer.max_to_keep=9"))
    for path in tmp_path.glob("model_*"):
        if path.name != "model_0000000.pth":
            path.unlink()
    train(toy(tmp_path, "train.max_iter=2"), resume=True)
    assert "train.max_iter was 3, and is 2 now" in (tmp_path / "log.txt").read_text()


def test_fewer_iterations_than_are_done_are_refused(tmp_path):
    """They made a checkpoint that could not be resumed, and an evaluation with a wrong number of iterations."""
    train(toy(tmp_path, "train.max_iter=3", "train.checkpointer.period=1", "train.eval_period=0"))
    metrics = tmp_path / "metrics.json"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))  # as if killed before evaluating
    before = content(tmp_path)
    with pytest.raises(ValueError, match="has 3 iterations already: train.max_iter=2 is too small"):
        train(toy(tmp_path, "train.max_iter=2"), resume=True)
    assert content(tmp_path) == before
