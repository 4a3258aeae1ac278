"""Test-time augmentation: views, the way back to the image, merging; in evaluation, `Detector`, files and commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from torch import nn

from detrkit import Detector, cfg_for_folder, evaluate, export, load_config
from detrkit.config.exported import InputSize, read_exported
from detrkit.config.test_augmentation import TTAOptions, set_tta, tta_options
from detrkit.runtime.soft_nms import soft_nms
from detrkit.training.test_augmentation import DetrWithTTA

from ..inference.conftest import pictures, random_weights, run_folder, small_config  # noqa: F401
from ..runtime.test_box_fusion import by_loop
from ..test_api import SMALL, TOY


class FindsBrightBox(nn.Module):
    """Detects the rectangle of bright pixels, in pixels of `height` and `width`, twice: also as another class."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, batch):
        self.sizes += [tuple(x["image"].shape[-2:]) for x in batch]
        results = []
        for x in batch:
            rows, columns = (x["image"].float().mean(0) > 128).nonzero(as_tuple=True)
            box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            height, width = x["image"].shape[-2:]
            box *= torch.tensor([x["width"] / width, x["height"] / height] * 2)
            found = Instances((x["height"], x["width"]), pred_boxes=Boxes(box.repeat(2, 1)))
            found.scores, found.pred_classes = torch.tensor([0.8, 0.5]), torch.tensor([1, 0])
            results.append({"instances": found})
        return results


@pytest.mark.parametrize("merge", ["wbf", "soft_nms"])
def test_every_view_finds_the_same_place(merge):
    """An object left of the centre stays there: mirrored and resized views lead back to the image."""
    image = np.zeros((60, 90, 3), np.uint8)
    image[12:36, 9:45] = 255
    model = FindsBrightBox()
    detector = DetrWithTTA(model, TTAOptions(min_sizes=(60, 120), merge=merge), InputSize(60, 100))
    inputs = {"image": torch.from_numpy(image.transpose(2, 0, 1)), "height": 60, "width": 90}
    (output,) = detector([inputs])
    found = output["instances"]
    assert model.sizes == [(60, 90)] * 2 + [(120, 180)] * 2
    assert found.image_size == (60, 90)
    assert torch.allclose(found.pred_boxes.tensor, torch.tensor([9.0, 12, 45, 36]), atol=1)
    assert found.pred_classes.tolist()[0] == 1 and found.scores[0] == pytest.approx(0.8)
    assert len(found) == 2  # as many as a pass gives
    assert inputs["image"].shape == (3, 60, 90) and set(inputs) == {"image", "height", "width"}


def test_sizes_of_the_views():
    """Without min_sizes the test mapper's size; the limit of the longer side grows in proportion, or is given."""
    image = {"image": torch.zeros(3, 50, 200, dtype=torch.uint8), "height": 50, "width": 200}
    image["image"][:, 10:20, 10:20] = 255
    for options, expected in (
        ({}, [(30, 120)]),
        ({"min_sizes": (20, 40)}, [(15, 60), (30, 120)]),
        ({"min_sizes": (20, 40), "max_size": 100}, [(20, 80), (25, 100)]),
    ):
        model = FindsBrightBox()
        DetrWithTTA(model, TTAOptions(flip=False, **options), InputSize(40, 120))([image])
        assert model.sizes == expected


def test_the_mapper_is_detectron2s():
    """A resized input counts as the first step of `transforms`, whose inverse leads to the original image."""
    given = {"image": torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8), "height": 80, "width": 120, "x": [1]}
    views = DatasetMapperTTA([20, 40], 100, True)(given)
    assert [tuple(view["image"].shape) for view in views] == [(3, 20, 30)] * 2 + [(3, 40, 60)] * 2
    assert torch.equal(views[2]["image"], given["image"])
    assert torch.equal(views[1]["image"], views[0]["image"].flip(-1)) and views[0]["x"] == [1]
    box = np.array([[10.0, 5, 30, 25]])
    for view, expected in zip(views, ([40, 20, 120, 100], [0, 20, 80, 100]), strict=False):
        assert view["transforms"].inverse().apply_box(box)[0].tolist() == pytest.approx(expected)


def views_by_hand(detector, pixels, sizes):
    """Detections of each view by the model itself, brought back by formulas: boxes, scores, classes."""
    boxes, scores, classes = [], [], []
    height, width = pixels.shape[:2]
    for size in sizes:
        resized = T.ResizeShortestEdge(size, 10000).get_transform(pixels).apply_image(pixels)
        for view in (resized, resized[:, ::-1]):
            image = torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))
            with torch.no_grad():
                found = detector.network.model([{"image": image, "height": height, "width": width}])[0]["instances"]
            box = found.pred_boxes.tensor
            if view is not resized:
                box = torch.stack([width - box[:, 2], box[:, 1], width - box[:, 0], box[:, 3]], dim=1)
            boxes, scores, classes = boxes + [box], scores + [found.scores], classes + [found.pred_classes]
    return torch.cat(boxes), torch.cat(scores), torch.cat(classes)


@pytest.mark.parametrize("merge", ["wbf", "soft_nms"])
def test_a_detector_is_the_loop(run_folder, pictures, merge):  # noqa: F811
    """A small DINO with random weights: each view alone, and the slow formulation of the merging."""
    options = {"min_sizes": [48, 64], "merge": merge, "max_size": 10000}
    detector = Detector(run_folder, device="cpu", test_aug=options)
    (found,) = detector(pictures[0], 0.0)
    boxes, scores, classes = views_by_hand(detector, pictures[0], (48, 64))
    if merge == "wbf":
        rows = by_loop(boxes.double().tolist(), scores.double().tolist(), classes.tolist(), 4, 0.55)[:60]
        expected = [np.array(values) for values in zip(*((box, s, c) for s, c, box in rows), strict=True)]
    else:
        order, lowered = soft_nms(boxes.numpy(), scores.numpy(), classes.numpy(), 0.55)
        expected = [boxes.numpy()[order][:60], lowered[:60], classes.numpy()[order][:60]]
    assert len(found) == len(expected[1]) > 20
    assert np.allclose(found.scores, expected[1], atol=1e-4)
    assert np.allclose(np.sort(found.boxes, axis=0), np.sort(expected[0], axis=0), atol=0.05)


def test_it_is_off_by_default(run_folder, pictures):  # noqa: F811
    """In new configs, and in those of earlier versions, which do not have the key."""
    assert tta_options(load_config(TOY)) is None
    cfg = small_config()
    assert tta_options(cfg) is None
    del cfg.train.test_aug
    assert tta_options(cfg) is None
    set_tta(cfg, {"min_sizes": [32]})
    assert tta_options(cfg) == TTAOptions(min_sizes=(32,))
    (plain,), (off,) = (
        list(Detector(run_folder, device="cpu", test_aug=value)(pictures[0], 0.0)) for value in (None, False)
    )
    assert np.array_equal(plain.boxes, off.boxes)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"min_sizes": 640}, r"train.test_aug.min_sizes=640: expected a list of sides"),
        ({"min_sizes": [0]}, r"min_sizes=\(0,\): expected a list of sides"),
        ({"max_size": -1}, "max_size=-1: expected pixels, or 0"),
        ({"flip": "yes"}, "flip='yes': expected True or False"),
        ({"merge": "nms"}, "merge='nms': expected wbf or soft_nms"),
        ({"iou": 1.5}, "iou=1.5: expected an IoU between 0 and 1"),
        ({"scales": [1]}, "train.test_aug.scales: there is no such option; there are enabled, min_sizes"),
        ({"enabled": 1}, "enabled=1: expected True or False"),
    ],
)
def test_mistakes_are_reported(options, message):
    cfg = OmegaConf.create({"train": {"test_aug": {"enabled": True, **options}}})
    with pytest.raises(ValueError, match=message):
        tta_options(cfg)


def test_other_values_are_reported(run_folder):  # noqa: F811
    with pytest.raises(ValueError, match="test_aug='yes': expected True, False or options"):
        Detector(run_folder, device="cpu", test_aug="yes")
    with pytest.raises(ValueError, match="train.test_aug=3: expected options"):
        tta_options(OmegaConf.create({"train": {"test_aug": 3}}))


def test_evaluation_uses_it(tmp_path, monkeypatch):
    """By the config's key; its detections in the results file are those of `Detector`."""
    from detrkit.commands import make_data

    monkeypatch.chdir(tmp_path)
    make_data.main(["--synthetic", "--train", "2", "--val", "2", "--output", "mine"])
    options = ["train.test_aug.enabled=True", "train.test_aug.min_sizes=[64,96]"]
    cfg = cfg_for_folder("mine", "align_detr_tiny", [*SMALL, *options])
    torch.save({"model": random_weights(cfg)}, "weights.pth")
    results = evaluate(cfg, "weights.pth")
    assert "bbox" in results
    rows = json.loads(Path("output/mine/coco_instances_results.json").read_text())
    images = {
        image["id"]: image["file_name"] for image in json.loads(next(Path().rglob("*val*.json")).read_text())["images"]
    }
    file = next(Path("mine").rglob(Path(images[rows[0]["image_id"]]).name))
    (found,), (plain,) = (
        list(Detector(config=cfg, weights="weights.pth", device="cpu", test_aug=value)(file, 0.0))
        for value in (None, False)
    )
    scores = [row["score"] for row in rows if row["image_id"] == rows[0]["image_id"]]
    assert sorted(scores, reverse=True) == pytest.approx(found.scores.tolist(), abs=1e-5) and len(scores) == 8
    assert not np.allclose(found.scores, plain.scores, atol=1e-5)


def test_files_keep_it(run_folder, pictures, tmp_path):  # noqa: F811
    """A weights file has the options, which an argument overrides; a graph is refused."""
    cfg = small_config()
    set_tta(cfg, {"min_sizes": [48, 64], "merge": "soft_nms"})
    weights = str(run_folder / "model_final.pth")
    export(None, tmp_path / "m.safetensors", config=cfg, checkpoint=weights)
    kept = read_exported(tmp_path / "m.safetensors").cfg
    assert tta_options(kept) == tta_options(cfg) == TTAOptions(min_sizes=(48, 64), merge="soft_nms")
    (found,) = Detector(tmp_path / "m.safetensors", device="cpu")(pictures[0], 0.0)
    (expected,) = Detector(config=cfg, weights=weights, device="cpu")(pictures[0], 0.0)
    (plain,) = Detector(tmp_path / "m.safetensors", device="cpu", test_aug=False)(pictures[0], 0.0)
    assert np.array_equal(found.scores, expected.scores) and not np.array_equal(found.scores, plain.scores)
    for suffix in (".onnx", ".pt2"):
        with pytest.raises(ValueError, match="train.test_aug.enabled=True: a graph has one pass"):
            export(None, tmp_path / f"m{suffix}", config=cfg, checkpoint=weights)


def test_an_onnx_file_has_one_pass():
    with pytest.raises(ValueError, match="m.onnx is a graph of one pass: test_aug needs"):
        Detector("m.onnx", device="cpu", test_aug=True)


def test_demo_and_eval_take_it(run_folder, pictures, tmp_path, capsys, monkeypatch):  # noqa: F811
    """`align-detr demo --tta` finds what `Detector` finds, and refuses --layer; `eval --tta` sets the key."""
    from PIL import Image

    from detrkit.commands import command_line, demo
    from detrkit.commands import evaluate as command

    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    arguments = [str(run_folder), "--input", str(tmp_path / "a.png"), "--no-pictures", "--json"]
    results = Path(tmp_path / "results.json")
    arguments += [str(results), "--score-threshold", "0", "train.device=cpu"]
    with pytest.raises(SystemExit) as stop:
        demo.main([*arguments, "--tta", "train.test_aug.min_sizes=[48,64]"])
    assert stop.value.code == 0
    (found,) = Detector(run_folder, device="cpu", test_aug={"min_sizes": [48, 64]})(pictures[0], 0.0)
    assert [row["score"] for row in json.loads(results.read_text())] == pytest.approx(found.scores.tolist())
    with pytest.raises(SystemExit) as stop:
        demo.main([*arguments, "--tta", "--layer", "1"])
    assert stop.value.code and "--layer 1 shows one decoder layer of one pass" in capsys.readouterr().err

    seen = []
    monkeypatch.setattr(command, "launch_processes", lambda work, args: seen.append(args))
    command.main([str(run_folder), "--tta"])
    assert seen[0].overrides == ["+train.test_aug.enabled=True"]
    cfg = load_config(TOY, command_line.with_tta(seen[0]))
    assert tta_options(cfg) == TTAOptions()
