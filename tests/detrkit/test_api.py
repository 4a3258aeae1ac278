"""The Python API: trainings, evaluations and exports from a program or a notebook."""

import json
import threading
from pathlib import Path

import pytest

import detrkit
from align_detr._platform import is_upstream
from detrkit import Detector, cfg_for_folder, evaluate, export, load_config, train

TOY = str(Path(__file__).parent / "commands" / "toy_config.py")
DIM = 256 if is_upstream() else 16  # detrex computes the positions of its queries for 256 channels
SMALL = (
    f"model.embed_dim={DIM}",
    f"model.position_embedding.num_pos_feats={DIM // 2}",
    "model.neck.norm_layer.num_groups=4",
    "model.num_queries=8",
    "model.select_box_nums_for_evaluation=8",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.device=cpu",
    "train.max_iter=2",
    "train.report.enabled=False",
)


def toy(folder, *overrides):
    return load_config(TOY, [f"train.output_dir={folder}", *overrides])


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_every_name_of_the_api_is_there():
    """Protects `from detrkit import ...`, which imports lazily."""
    assert all(callable(getattr(detrkit, name)) for name in detrkit.__all__) and {*detrkit.__all__} < {*dir(detrkit)}
    with pytest.raises(AttributeError, match="detrkit.*no attribute 'trian'"):
        detrkit.trian  # noqa: B018


def test_twice_in_one_process(tmp_path):
    """Protects notebooks: each training has its own log and metrics, and the same results."""
    results = [train(toy(tmp_path / name)) for name in ("first", "second")]
    assert results[0] == results[1] != {}
    logs = [(tmp_path / name / "log.txt").read_text() for name in ("first", "second")]
    assert "second" not in logs[0].replace("seconds", "") and "/second" in logs[1]
    without_times = [
        [{k: v for k, v in row.items() if "time" not in k and k != "eta_seconds"} for row in rows(tmp_path / name)]
        for name in ("first", "second")
    ]
    assert without_times[0] == without_times[1]


def test_in_a_thread(tmp_path):
    """Protects servers and notebooks with widgets: Python allows no signal handlers there."""
    found = []
    thread = threading.Thread(target=lambda: found.append(train(toy(tmp_path))))
    thread.start()
    thread.join()
    assert found and found[0]


def test_resumed_and_evaluated(tmp_path):
    """Protects the figures: an evaluation gives what the training ended with."""
    train(toy(tmp_path, "train.max_iter=2"))
    results = train(toy(tmp_path, "train.max_iter=4"), resume=True)
    assert rows(tmp_path)[-1]["iteration"] in (3, 4)
    again = evaluate(toy(tmp_path / "again"), tmp_path / "model_final.pth")
    assert again == results
    assert evaluate(toy(tmp_path / "again"), tmp_path) == results
    with pytest.raises(ValueError, match="which='last' is not one of final, best"):
        evaluate(toy(tmp_path / "again"), tmp_path, which="last")


def test_mistakes_are_exceptions(tmp_path):
    """Protects programs from an exit: a library raises, and the message is a sentence."""
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(toy(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such file"):
        evaluate(toy(tmp_path), "gone.pth")
    with pytest.raises(ValueError, match="precision=int4 is none of float32, "):
        export(tmp_path, tmp_path / "x.onnx", precision="int4")
    with pytest.raises(FileNotFoundError, match="no such config: gone"):
        load_config("gone")
    for call in (lambda text: load_config("dino_tiny", text), lambda text: cfg_for_folder(tmp_path, None, text)):
        with pytest.raises(ValueError, match=r"='train.max_iter=2': expected a list of \"key=value\""):
            call("train.max_iter=2")


def test_a_folder_becomes_a_detector(tmp_path, monkeypatch):
    """Protects the whole way: a folder of images, a training, one file, detections."""
    from detrkit.commands import make_data

    monkeypatch.chdir(tmp_path)
    make_data.main(["--synthetic", "--train", "4", "--val", "2", "--output", "mine"])
    results = train(cfg_for_folder("mine", "align_detr_tiny", SMALL))
    assert "bbox" in results
    exported = export("output/mine", "mine.safetensors")
    assert exported.path == Path("mine.safetensors") and exported.shape is None
    (found,) = Detector("mine.safetensors", device="cpu")([next(Path("mine/val2017").iterdir())], score_threshold=0.0)
    assert len(found.scores) == 8


def test_an_earlier_training_is_not_overwritten_unasked(tmp_path):
    """Protects checkpoints: the one line names the choices, nothing has changed, and --overwrite leaves other files."""
    train(toy(tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="--resume .*--overwrite .*train.output_dir=") as error:
        train(toy(tmp_path))
    assert "\n" not in str(error.value)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    train(toy(tmp_path, "train.max_iter=1", "train.checkpointer.period=0"), overwrite=True)
    assert rows(tmp_path)[-1]["iteration"] <= 1 and (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_with_a_training_is_not_converted_again(tmp_path, monkeypatch):
    """Protects the data and the config of a training on a folder."""
    from detrkit.commands import make_data

    monkeypatch.chdir(tmp_path)
    make_data.main(["--synthetic", "--train", "4", "--val", "2", "--output", "mine"])
    output = tmp_path / "output/mine"
    output.mkdir(parents=True)
    (output / "model_final.pth").write_text("precious")
    with pytest.raises(ValueError, match="output/mine holds a training already .model_final.pth."):
        cfg_for_folder("mine", "align_detr_tiny", SMALL)
    assert [path.name for path in output.iterdir()] == ["model_final.pth"]
    cfg_for_folder("mine", "align_detr_tiny", SMALL, overwrite=True)
    assert (output / "config.py").is_file()
