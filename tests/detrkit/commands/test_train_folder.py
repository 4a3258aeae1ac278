"""`align-detr train FOLDER --resume`, and what the command says to folders of other kinds."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image

from align_detr._platform import is_upstream
from detrkit.commands import train as tool

LOGGERS = ("detectron2", "detrex", "align_detr", "detrkit", "projects", "fvcore")
TOY = str(Path(__file__).with_name("toy_config.py"))
DIM = 256 if is_upstream() else 16  # detrex computes the positions of its queries for 256 channels
SMALL = (
    f"model.embed_dim={DIM} model.position_embedding.num_pos_feats={DIM // 2} model.neck.norm_layer.num_groups=4 "
    "model.num_queries=8 model.select_box_nums_for_evaluation=8 dataloader.train.total_batch_size=2 "
    "dataloader.train.num_workers=0 dataloader.test.num_workers=0 train.report.enabled=False train.log_period=1 "
    "train.device=cpu"
).split()


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    return lambda *words: tool.main(list(words))


@pytest.fixture
def error_of(train, capsys):
    def error_of(*words):
        with pytest.raises(SystemExit) as stop:
            train(*words)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert stop.value.code == 1
        return line

    return error_of


def iterations(folder):
    return [json.loads(line)["iteration"] for line in Path(folder, "metrics.json").read_text().splitlines()]


def test_the_folder_of_a_training_is_resumed_by_its_name(train, error_of):
    """Its config.yaml has all overrides. A folder that was moved is resumed where it is now."""
    from detrkit.commands import make_data

    make_data.main(["--synthetic", "--train", "4", "--val", "2", "--output", "mine"])
    train("--data", "mine", "align_detr_tiny", *SMALL, "optimizer.lr=0.0007", "train.max_iter=2")
    assert "--resume goes on with it" in error_of("output/mine")
    train("output/mine", "--resume", "train.max_iter=3")
    assert iterations("output/mine")[-1] == 3 and "lr: 0.0007" in Path("output/mine/config.yaml").read_text()
    shutil.copytree("output/mine", "copy")
    before = {path: path.read_bytes() for path in Path("output").rglob("*") if path.is_file()}
    train("--resume", "copy", "train.max_iter=4")
    assert iterations("copy")[-1] == 4
    assert before == {path: path.read_bytes() for path in Path("output").rglob("*") if path.is_file()}
    assert "/copy/data/val.json" in Path("copy/config.yaml").read_text()  # not those of the original


def test_a_folder_that_was_renamed_has_its_annotations(train):
    """Its config.yaml and its config.py name those that moved with it, also where the former folder is another
    training's now; annotations outside stay where they are."""
    from detrkit import load_config
    from detrkit.commands import errors, evaluate, make_data
    from detrkit.datasets.registration import registration_of

    make_data.main(["--synthetic", "--train", "2", "--val", "2", "--output", "mine"])
    train("--data", "mine", "align_detr_tiny", *SMALL, "train.max_iter=1", "train.output_dir=output/t1")
    Path("output/t1").rename("output/moved")
    evaluate.main(["output/moved"])
    errors.main(["output/moved"])
    assert Path("output/moved/errors.json").is_file() and not Path("output/t1").exists()
    shutil.copytree("output/moved", "output/t1")
    for name in ("config.py", "config.yaml"):
        load_config(f"output/moved/{name}")
        assert Path(registration_of("mine_val").source) == Path("output/moved/data/val.json").absolute()
        assert Path(registration_of("mine_val").image_root) == Path("mine").absolute()
    shutil.move("output/t1/data", "outside")
    text = Path("output/moved/config.yaml").read_text()
    Path("output/moved/config.yaml").write_text(text.replace("/output/t1/data", "/outside"))
    load_config("output/moved/config.yaml")
    assert Path(registration_of("mine_val").source) == Path("outside/val.json").absolute()


def test_a_training_with_code_of_the_users_is_resumed_by_its_config(train, error_of):
    """A config.yaml runs no code; the line says what to type."""
    train(TOY, "train.output_dir=own", "train.max_iter=1")
    assert "`align-detr train CONFIG.py --resume train.output_dir=own`" in error_of("own", "--resume")


def test_other_folders_are_told_apart(tmp_path, error_of):
    """`train roos` for a folder of images."""
    (tmp_path / "roos/images").mkdir(parents=True)
    line = error_of("roos", "--resume")
    assert line.startswith("error: roos is not the folder of a training") and "--data" not in line
    Image.new("RGB", (4, 4)).save(tmp_path / "roos/images/a.JPG", format="JPEG")
    assert "`align-detr train --data roos`" in error_of("roos")


@pytest.mark.parametrize("words, message", [
    (["--train.max_iter=3"], "train.max_iter=3"),
    (["--train.max_iter", "3"], "train.max_iter=3"),
    (["--lr", "1e-3"], "optimizer.lr=1e-3"),
    (["--batch_size", "4", "--resume"], "dataloader.train.total_batch_size=4"),
    (["--device", "train.max_iter=3"], "train.device=VALUE"),
])  # fmt: skip
def test_keys_of_the_config_have_no_dashes(train, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        train("align_detr_tiny", *words)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1
    assert f"keys of the config are given without dashes: {message} (" in line
