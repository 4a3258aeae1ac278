"""The command that measures alignment, on detectors whose predictions are written down here."""

import json
import re

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from align_detr._platform import EMBEDDED_ROOT

TOOLS = EMBEDDED_ROOT.parent / "tools"
ALIGN = str(EMBEDDED_ROOT.parent / "projects/align_detr/configs/align_detr_tiny.py")
DINO = str(EMBEDDED_ROOT.parent / "configs/baselines/dino_tiny.py")
SIDE = 100


class Scripted(nn.Module):
    """Finds the object of every image with IoU 0.78 and `score`, and nothing with a score of 0.6."""

    def __init__(self, score):
        super().__init__()
        self.criterion = nn.Identity()
        scores = torch.full((2, 3), 1e-4)
        scores[:, 0] = torch.tensor([score, 0.6])
        corners = torch.tensor([[10, 10, 90, 72.4], [91, 0, 99, 8]]) / SIDE
        self.logits = scores.logit()
        self.boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)

    def forward(self, batch):
        shape = len(batch), -1, -1
        layer = {"pred_logits": self.logits.expand(shape), "pred_boxes": self.boxes.expand(shape)}
        return self.criterion({**layer, "aux_outputs": [layer]})

    def inference(self, logits, boxes, sizes):
        """All predictions, as pixels of `sizes`."""
        corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1)
        return [
            Instances(
                (height, width),
                pred_boxes=Boxes((corners[i] * torch.tensor([width, height] * 2)).repeat_interleave(3, 0)),
                scores=logits[i].sigmoid().flatten(),
                pred_classes=torch.arange(3).repeat(2),
            )
            for i, (height, width) in enumerate(sizes)
        ]


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """The tool, where `low.pth` and `high.pth` are detectors that score the object's box 0.2 and 0.9."""
    from detrkit.commands import analyze as analyze_alignment
    from detrkit.reports import alignment

    for name in ("low.pth", "high.pth"):
        torch.save({"model": {}}, tmp_path / name)
    scores = {"low.pth": 0.2, "high.pth": 0.9}
    monkeypatch.setattr(alignment, "load_detector", lambda cfg, path: Scripted(scores[path.rpartition("/")[2]]))
    write_dataset(tmp_path)
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path))
    return analyze_alignment


def write_dataset(root):
    """Three images, one of them wider; an object of the first class in each, and a crowd in the last."""
    (root / "val2017").mkdir()
    (root / "annotations").mkdir()
    images = [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in (7, 8, 9)]
    for image in images:
        Image.new("RGB", (SIDE, SIDE)).save(root / "val2017" / image["file_name"])
    objects = [
        {"id": i, "image_id": i, "category_id": 4, "bbox": [10, 10, 80, 80], "area": 6400, "iscrowd": 0}
        for i in (7, 8, 9)
    ]
    crowd = {**objects[-1], "id": 10, "iscrowd": 1, "bbox": [0, 0, 50, 50], "area": 2500}
    crowd["segmentation"] = {"size": [SIDE, SIDE], "counts": [0, 2500, 7500]}
    names = {4: "circle", 6: "square", 9: "triangle"}
    content = {
        "images": images,
        "annotations": [*objects, crowd],
        "categories": [{"id": id_, "name": name} for id_, name in names.items()],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))


@pytest.fixture
def run(tool, tmp_path):
    def run(*arguments, config=ALIGN):
        output = tmp_path / "out"
        tool.main(
            ["--config-file", config, "--output", str(output), *map(str, arguments), "dataloader.test.num_workers=0"]
        )
        return json.loads((output / "alignment.json").read_text()), output

    return run


def test_two_models_side_by_side(run, tmp_path):
    """Figures and AP worked out by hand. A box of IoU 0.78 counts at six of COCO's ten thresholds: AP 60, and half of
    that if a wrong one always ranks before it. With the IoU for a score both have 60."""
    report, output = run("--checkpoint", tmp_path / "low.pth", "--compare", f"{DINO}:{tmp_path / 'high.pth'}")
    low, high = report["models"]
    assert (report["images"], report["objects"]) == (3, 3)
    assert (low["name"], high["name"]) == ("align_detr_tiny", "dino_tiny")
    for model, score, ap, first in ((low, 0.2, 30, 0), (high, 0.9, 60, 1)):
        figures = model["figures"]
        assert figures["matched_iou"] == pytest.approx(0.78, abs=1e-5)
        assert figures["matched_score"] == pytest.approx(score, abs=1e-5)
        assert figures["expected_error"] == pytest.approx(abs(score - 0.78), abs=1e-5)
        assert (figures["best_in_top_n"], figures["best_in_top_2n"]) == (first, 1)  # one object, two predictions
        assert figures["same_query"] == 1 and figures["spearman"] is None
        assert figures["discriminability"] is None  # these have no encoder
        assert model["ap"]["plain"]["AP"] == pytest.approx(ap, abs=1e-3)
        assert model["ap"]["aligned"]["AP"] == pytest.approx(60, abs=1e-3)
        assert model["ap"]["cost"] == pytest.approx(60 - ap, abs=1e-3)
    assert high["differences"]["best_in_top_n"] == {"value": 1, "interval": [1, 1]}
    assert low["differences"]["best_in_top_n"] is None

    html = (output / "alignment.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    pictures = sorted(output.glob("*.png"))
    assert len(pictures) == html.count("data:image/png;base64,") == 6 + 2 * 2
    for picture in pictures:
        assert np.asarray(Image.open(picture).convert("L")).std() > 10  # there is something on it


def test_names_and_limits(run, tmp_path, capsys):
    """One config's checkpoints are named by their files; given names win; --num-images cuts data and AP alike."""
    paths = tmp_path / "low.pth", "--compare", tmp_path / "high.pth", tmp_path / "low.pth"
    report, _ = run("--checkpoint", *paths, "--num-images", 1, "--names", "a", "b", "c")
    assert [model["name"] for model in report["models"]] == ["a", "b", "c"]
    assert report["images"] == 1
    assert report["models"][0]["ap"]["plain"]["AP"] == pytest.approx(30, abs=1e-3)
    report, _ = run("--checkpoint", *paths[:-1])
    assert [model["name"].rpartition("/")[2] for model in report["models"]] == ["low", "high"]
    assert "spearman" in capsys.readouterr().out


def test_mistakes(run, tmp_path, capsys):
    """What is wrong is said in one line, before anything runs."""

    def error(*arguments, **kwargs):
        with pytest.raises(SystemExit) as stop:
            run(*arguments, **kwargs)
        assert stop.value.code == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert error(config="nowhere.py") == "error: no such config: nowhere.py"
    assert error("--checkpoint", "nowhere.pth") == "error: no such checkpoint: nowhere.pth"
    assert error("--compare", f"{DINO}:nowhere.pth") == "error: no such checkpoint: nowhere.pth"
    assert "--names has 1 names for 2 models" in error("--compare", tmp_path / "low.pth", "--names", "a")
    assert "at least 1" in error("--batch-size", 0)
    assert "num_classes=1" in error("--checkpoint", tmp_path / "low.pth", "model.num_classes=1")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a/b.pth", ("mine.py", "a/b.pth")),
        ("a/c.py:a/b.pth", ("a/c.py", "a/b.pth")),
        ("run/config.yaml:run/model.pth", ("run/config.yaml", "run/model.pth")),
        ("https://a.b/c.pth", ("mine.py", "https://a.b/c.pth")),
        ("c.py:https://a.b/c.pth", ("c.py", "https://a.b/c.pth")),
    ],
)
def test_what_a_model_is_compared_with(text, expected):
    """A checkpoint of the same config, or of another one: a file of ours, or what a training wrote of its own."""
    from detrkit.commands.analyze import split_pair

    assert split_pair(text, "mine.py") == expected
