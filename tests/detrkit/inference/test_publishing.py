"""Detectors as folders and repositories of the hub: the same detections, a card, and one line for each mistake."""

import json
import shutil
import sys
import types

import numpy as np
import pytest
from PIL import Image

from align_detr import Detector
from detrkit.commands import push

from .conftest import write_run


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A package huggingface_hub whose repositories are folders below `hub`."""

    class Missing(Exception):
        pass

    class HfApi:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repository, private=False, exist_ok=False):
            if repository.startswith("other/"):
                raise PermissionError("403 Forbidden\nRequest ID: 1")
            (tmp_path / "hub" / repository).mkdir(parents=True, exist_ok=exist_ok)
            return f"https://huggingface.co/{repository}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id, dirs_exist_ok=True)

    def hf_hub_download(repository, name, revision=None):
        path = tmp_path / "hub" / repository / name
        if not path.is_file():
            raise Missing(f"404: {repository} has no {name}")
        return str(path)

    package, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    package.HfApi, package.hf_hub_download, errors.EntryNotFoundError = HfApi, hf_hub_download, Missing
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return tmp_path / "hub"


@pytest.fixture
def run(tmp_path):
    """A training's folder with a chosen threshold and an evaluation."""
    folder = write_run(tmp_path / "run")
    (folder / "errors.json").write_text('{"score_threshold": 0.125}')
    rows = [{"iteration": 1, "bbox/AP": 12.5, "bbox/AP50": 30.25, "bbox/APl": float("nan"), "bbox/AP-cat": 1.0}]
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"iteration": 2}]))
    return folder


def same(one, other, pictures):
    for a, b in zip(one(pictures[:2], 0.05), other(pictures[:2], 0.05), strict=True):
        assert len(a) > 3 and np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores)
        assert a.labels == b.labels


def test_a_folder(run, tmp_path, pictures):
    """Python and the command write the same detector, with a card that says what it is."""
    detector = Detector(run, device="cpu")
    folder = detector.save_pretrained(tmp_path / "published", repository="user/cells", pictures=pictures[:2])
    again = Detector.from_pretrained(folder, device="cpu")
    same(detector, again, pictures)
    assert again.score_threshold == 0.125
    card = (folder / "README.md").read_text()
    assert 'Detector.from_pretrained("user/cells")' in card and "# cells\n" in card and "score 0.125 or more" in card
    assert "| AP | 12.50 |" in card and "| AP50 | 30.25 |" in card and "APl" not in card and "cat" not in card
    assert card.startswith("---\nlibrary_name: align-detr\npipeline_tag: object-detection\n")
    about = json.loads((folder / "config.json").read_text())
    assert list(about["id2label"].values()) == detector.class_names and about["score_threshold"] == 0.125
    assert Image.open(folder / "detections_2.jpg").size and "detections_2.jpg" in card
    push.main([str(run), "--folder", str(tmp_path / "other")])
    same(detector, Detector.from_pretrained(tmp_path / "other", device="cpu"), pictures)
    saved = again.save_pretrained(tmp_path / "third", metrics={"AP": 1})  # a published one can be published again
    assert "| AP | 1.00 |" in (saved / "README.md").read_text()


def test_a_repository(run, hub, pictures, capsys):
    """From the command line and from Python, there and back."""
    push.main([str(run), "user/cells", "--private"])
    assert capsys.readouterr().out.endswith("https://huggingface.co/user/cells\n")
    detector = Detector(run, device="cpu")
    assert detector.push_to_hub("user/more", metrics={"AP": 3.0}) == "https://huggingface.co/user/more"
    for name in ("user/cells", "user/more"):
        same(detector, Detector.from_pretrained(name, device="cpu"), pictures)
    assert sorted(path.name for path in (hub / "user/cells").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("words, message", [
    (["run"], "give either a repository, as USER/NAME, or --folder"),
    (["nothing", "user/name"], "no such file or folder: nothing"),
    (["run", "name"], "'name' is not the name of a repository: give USER/NAME"),
    (["run", "other/name"], "cannot upload to other/name: 403 Forbidden; `hf auth login` stores an access token"),
])  # fmt: skip
def test_mistakes_end_in_one_line(run, hub, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        push.main(words)
    assert capsys.readouterr().err == f"error: {message}\n"


def test_what_is_not_there(run, hub, tmp_path, monkeypatch):
    with pytest.raises(OSError, match="cannot download hf://user/none/model.safetensors: 404"):
        Detector.from_pretrained("user/none")
    with pytest.raises(FileNotFoundError, match="has no model.safetensors: `align-detr push` writes it"):
        Detector.from_pretrained(run)
    with pytest.raises(ValueError, match="neither a folder nor the name of a repository"):
        Detector.from_pretrained("none")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r'pip install "\.\[hub\]"'):
        Detector(run, device="cpu").push_to_hub("user/name")
