"""The folder of a training and exported files as the first word of a command, and which checkpoint is taken."""

import importlib.util
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from align_detr import Detector
from detrkit.commands import analyze, demo, evaluate, export, make_data, train
from detrkit.inference.sources import find_named

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("inference_conftest", HERE.parent / "inference/conftest.py")
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)
LOGGERS = ("detectron2", "detrex", "align_detr", "detrkit", "projects", "fvcore")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "drawn"
    make_data.main(["--synthetic", "--train", "2", "--val", "2", "--output", str(root)])
    return root


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A training's folder whose best checkpoint has other weights than its last."""
    folder = small.write_run(tmp_path_factory.mktemp("runs") / "dino_small")
    weights = small.random_weights(small.small_config(), seed=1)
    torch.save({"model": weights, "iteration": 0}, folder / "model_best.pth")
    return folder


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / "1.png")
    return tmp_path / "1.png"


@pytest.fixture
def detect(photo, tmp_path, monkeypatch, capsys):
    """`detect(source, ...)` runs the demo; returns its entries and its output."""
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path / "no_data"))

    def detect(*words):
        options = ["--input", photo, "--output", tmp_path / "out", "--json", tmp_path / "out.json"]
        with pytest.raises(SystemExit) as stop:
            demo.main([str(word) for word in (*words, *options, "--score-threshold", 0.1)])
        captured = capsys.readouterr()
        assert stop.value.code == 0, captured.err
        return json.loads((tmp_path / "out.json").read_text()), captured.out

    return detect


def same(entries, found):
    assert len(entries) == len(found) > 3
    for entry, expected in zip(entries, found.to_coco(1), strict=True):
        assert entry["category_id"] == expected["category_id"]
        assert entry["bbox"] == pytest.approx(expected["bbox"], abs=0.05)
        assert entry["score"] == pytest.approx(expected["score"], abs=1e-4)


@pytest.mark.parametrize("which", [None, "best", "final"])
def test_the_demo_and_detector_take_a_folder(run_folder, detect, photo, which):
    """Both take the same checkpoint, and say which."""
    choice = ["--which", which] if which else []
    name = "model_best.pth" if which == "best" else "model_final.pth"
    detector = Detector(run_folder, which=which, device="cpu")
    assert detector.weights == str(run_folder / name)
    for words in ([run_folder], ["--checkpoint", run_folder]):
        entries, out = detect(*words, *choice, "train.device=cpu")
        assert f"weights: {run_folder / name}" in out
        same(entries, next(detector(photo, 0.1)))


def test_a_checkpoint_that_is_not_there_is_not_chosen(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / "model_best.pth").unlink()
    with pytest.raises(FileNotFoundError, match="run has no model_best.pth: choose final"):
        Detector(folder, which="best")
    (folder / "model_best.pth").write_bytes(b"")
    (folder / "model_final.pth").unlink()
    with pytest.raises(FileNotFoundError, match="no model_final.pth, since its training has not ended: choose best"):
        Detector(folder, which="final")
    (folder / "model_best.pth").unlink()
    with pytest.raises(FileNotFoundError, match="run has no weights yet"):
        Detector(folder)
    with pytest.raises(ValueError, match="which='last' is not one of final, best"):
        Detector(run_folder, which="last")
    with pytest.raises(ValueError, match="but none is given"):
        find_named("dino_tiny", "x.pth", "best")


def error_of(words, capsys):
    """The last line of what `align-detr demo` says on stderr."""
    with pytest.raises(SystemExit):
        demo.main(list(map(str, words)))
    return capsys.readouterr().err.splitlines()[-1]


def test_weights_alone(run_folder, photo, tmp_path, capsys):
    """Protects who gives a .pth file alone: the line says what it needs, and how to type it."""
    weights = run_folder / "model_final.pth"
    for words in ([weights], ["--checkpoint", weights]):
        assert error_of([*words, "--input", photo], capsys) == (
            f"error: {weights} holds weights alone: give the folder of its training {run_folder}, or its config too: "
            f"`CONFIG --checkpoint {weights}`"
        )
    with pytest.raises(ValueError, match="holds weights alone: .*, or its config too, by config= and weights=;"):
        Detector(weights)


def test_incomplete_weights_are_called_that(run_folder, photo, tmp_path, capsys):
    """Alone and in a folder, which names its other checkpoint: the message was that a config lacks, or PyTorch's."""
    folder = shutil.copytree(run_folder, tmp_path / "cut")
    weights = folder / "model_final.pth"
    weights.write_bytes(weights.read_bytes()[:-1000])
    said = f"error: {weights} is incomplete: it was cut off while it was written or copied"
    for words in ([weights], ["--checkpoint", weights], [folder], ["--checkpoint", folder]):
        assert error_of([*words, "--input", photo], capsys).startswith(said)
    assert error_of([folder, "--input", photo], capsys).endswith("choose it by --which 'best')")
    for source in (weights, folder):
        with pytest.raises(ValueError, match="is incomplete: it was cut off"):
            Detector(source)
    assert find_named(str(folder), which="best").weights == str(folder / "model_best.pth")


def test_the_place_to_write_to_is_checked_first(photo, tmp_path, capsys):
    """Before the detector is loaded: this one would not even be found."""
    (tmp_path / "file.txt").write_text("hello")
    words = ["dino_tiny", "--checkpoint", photo, "--input", photo]
    assert error_of([*words, "--output", tmp_path / "file.txt"], capsys) == (
        f"error: --output {tmp_path / 'file.txt'} is a file: give the name of a folder"
    )
    assert "cannot write to --output" in error_of([*words, "--output", tmp_path / "file.txt/out.d"], capsys)
    assert "file.txt: Not a directory" in error_of([*words, "--json", tmp_path / "file.txt/a.json"], capsys)
    assert "is a folder: give the name of a file" in error_of([*words, "--json", tmp_path], capsys)


@pytest.mark.parametrize("value", ["1.5", "-0.1", "nan", "half"])
def test_scores_are_from_0_to_1(run_folder, photo, capsys, value):
    words = [run_folder, "--input", photo, "--score-threshold", value]
    assert f"argument --score-threshold: {value}: expected a score from 0 to 1" in error_of(words, capsys)
    if value != "half":
        with pytest.raises(ValueError, match="score_threshold=.*: expected a score from 0 to 1"):
            Detector(run_folder, device="cpu")(photo, float(value))


def test_the_demo_takes_exported_files(run_folder, detect, tmp_path, photo, capsys):
    """A `.safetensors` file as the first word; an ONNX file gives the boxes that `Detector` gives."""
    file = tmp_path / "small.safetensors"
    export.main([str(run_folder), "--which", "best", "--output", str(file)])
    assert f"weights: {run_folder / 'model_best.pth'}" in capsys.readouterr().out
    entries, _ = detect(file, "train.device=cpu")
    same(entries, next(Detector(run_folder, which="best", device="cpu")(photo, 0.1)))


@pytest.mark.slow
def test_the_demo_takes_onnx(run_folder, detect, tmp_path, photo, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    file = tmp_path / "small.onnx"
    export.main([str(run_folder), "--output", str(file), "--dynamic"])
    capsys.readouterr()
    entries, _ = detect(file)
    same(entries, next(Detector(file)(photo, 0.1)))
    assert (tmp_path / "out/1.png").is_file()
    with pytest.raises(SystemExit):
        demo.main([str(file), "--input", str(photo), "--layer", "1"])
    assert "--layer=1 needs a model of PyTorch" in capsys.readouterr().err


def test_nothing_detected_names_a_threshold(run_folder, photo, tmp_path, monkeypatch, capsys):
    """Protects a beginner with a short training from an empty sheet without a hint."""
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path / "no_data"))
    with pytest.raises(SystemExit):
        words = [run_folder, "--input", photo, "--output", tmp_path / "out", "--score-threshold", 1.0]
        demo.main([*map(str, words), "train.device=cpu"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("0 detections in 1 image: ") and "; highest score " in line
    assert ": try --score-threshold 0." in line


@pytest.fixture
def quiet(monkeypatch):
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])


def test_eval_takes_a_folder(run_folder, data, tmp_path, monkeypatch, capsys, quiet):
    """Its results go into it, wherever it was moved to; the config with the checkpoint gives the same."""
    monkeypatch.setenv("TINY_COCO_ROOT", str(data))
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(run_folder, tmp_path / "moved")
    few = ["dataloader.test.num_workers=0", "train.report.enabled=False"]
    evaluate.main([str(folder), "--which", "best", *few])
    out = capsys.readouterr().out
    assert f"weights: {folder / 'model_best.pth'}" in out
    by_folder = json.loads((folder / "coco_instances_results.json").read_text())
    assert (folder / "config.yaml").read_bytes() == (run_folder / "config.yaml").read_bytes()
    words = [str(folder / "config.yaml"), "--checkpoint", str(folder / "model_best.pth")]
    evaluate.main([*words, *few, "train.output_dir=o"])
    assert by_folder == json.loads(Path("o/coco_instances_results.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved", "o"]


def test_eval_keeps_the_results_of_the_trainings_own_dataset(run_folder, data, tmp_path, monkeypatch, quiet):
    monkeypatch.setenv("TINY_COCO_ROOT", str(data))
    folder = shutil.copytree(run_folder, tmp_path / "run")
    few = ["dataloader.test.num_workers=0"]
    evaluate.main([str(folder), *few])
    own = (folder / "coco_instances_results.json").read_bytes()
    evaluate.main([str(folder), *few, "dataloader.test.dataset.names=tiny_coco_train"])
    assert (folder / "coco_instances_results.json").read_bytes() == own
    assert (folder / "tiny_coco_train/coco_instances_results.json").read_bytes() != own


def test_eval_says_what_it_cannot_take(run_folder, tmp_path, capsys):
    file = tmp_path / "small.safetensors"
    export.main([str(run_folder), "--output", str(file)])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        evaluate.main([str(file)])
    line = capsys.readouterr().err
    assert line == (
        f"error: {file} has no test data: give a config that has, as `align-detr eval CONFIG --checkpoint {file}`\n"
    )


def test_analyze_takes_folders(run_folder, data, monkeypatch, tmp_path, quiet):
    """The page goes into the training's folder, and models have the names of their folders."""
    monkeypatch.setenv("TINY_COCO_ROOT", str(data))
    one, two = (shutil.copytree(run_folder, tmp_path / name) for name in ("one", "two"))
    analyze.main([str(one), "--compare", str(two), "dataloader.test.num_workers=0"])
    report = json.loads((one / "alignment/alignment.json").read_text())
    assert [model["name"] for model in report["models"]] == ["one", "two"]


def error(capsys, main, *words):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, words)))
    captured = capsys.readouterr()
    assert stop.value.code == 1 and "Traceback" not in captured.err
    return captured


def test_missing_drawn_data_name_the_command_that_draws_them(tmp_path, monkeypatch, capsys, quiet):
    """Before the model is built, and without a log."""
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path / "none"))
    found = error(capsys, train.main, "dino_tiny", f"train.output_dir={tmp_path}/out")
    assert found.err.startswith("error: dataset tiny_coco_train: ") and found.err.count("\n") == 1 and not found.out
    assert "`align-detr make-data --synthetic` draws this dataset" in found.err
    assert "set the environment variable TINY_COCO_ROOT" in found.err


def test_a_folder_of_images_alone_is_called_that(tmp_path, monkeypatch, capsys, quiet):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(f"mine/{number}.png")
    found = error(capsys, train.main, "dino_tiny", "--data", "mine")
    assert "error: mine has 3 images and no annotations: put files of annotations beside them" in found.err


def test_a_wrong_number_of_classes_is_one_line(run_folder, data, tmp_path, monkeypatch, capsys, quiet):
    """Without the table of all tensors before it."""
    monkeypatch.setenv("TINY_COCO_ROOT", str(data))
    weights = f"{run_folder}/model_final.pth"
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    found = error(capsys, demo.main, "dino_tiny", "--checkpoint", weights, "--input", tmp_path, "model.num_classes=5")
    (line,) = [line for line in found.err.splitlines() if "left out" not in line]
    assert line.endswith("set model.num_classes=3") and "has 3 classes, the config's model has 5" in line
    assert "transformer" not in found.out
