"""`align-detr show-data`: a sheet of augmented training images, the same for the same seed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.commands import make_data, show_data
from detrkit.config.load import load_config
from detrkit.reports.data_sheet import draw_training_images
from detrkit.reports.sheet import CELL, GAP, MARGIN


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    make_data.main(["--synthetic", "--train", "6", "--val", "2", "--output", str(tmp_path / "data")])
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def sheet(*words):
    show_data.main(["align_detr_tiny", "--output", "sheet.png", *words])
    return np.asarray(Image.open("sheet.png"))


def test_command_and_python(capsys):
    """Rows and columns as asked for, the same for one seed, and the same from Python; a config's changes are seen."""
    first = sheet("--num", "5", "--columns", "3")
    assert capsys.readouterr().out.endswith("Wrote 5 training images to sheet.png\n")
    assert first.shape[1] == 2 * MARGIN + 3 * CELL + 2 * GAP
    assert np.array_equal(first, sheet("--num", "5", "--columns", "3"))
    assert draw_training_images(load_config("align_detr_tiny"), Path("other.png"), 5, 3) == 5
    assert np.array_equal(first, np.asarray(Image.open("other.png")))
    assert not np.array_equal(first, sheet("--num", "5", "--columns", "3", "--seed", "1"))
    assert not np.array_equal(first, sheet("--num", "5", "--columns", "3", "train.mix.mosaic=1.0"))


@pytest.mark.parametrize("words, message", [
    (["--num", "0"], "--num and --columns are at least 1"),
    (["--output", "sheets"], "--output sheets is not the name of a picture: end it in .png or .jpg"),
    (["train.mix.mosaic=3"], "train.mix: mosaic=3 and copy_paste=0.0 are probabilities from 0 to 1"),
])  # fmt: skip
def test_mistakes_end_in_one_line(capsys, words, message):
    with pytest.raises(SystemExit):
        sheet(*words)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
