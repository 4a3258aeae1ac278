"""Class rows are matched by name: in fine-tuning, in evaluation, and in what is reported."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from small_models import LACKING

from detrkit.config.load import get_config, load_config_file
from detrkit.datasets.classes import Classes
from detrkit.training.checkpoints import SafeCheckpointer
from detrkit.training.class_heads import class_heads_matched
from detrkit.weights import (
    WeightsFile,
    all_formats,
    classes_of_weights,
    coco_names,
    coco_names_by_id,
    look_at,
    write_weights,
)
from detrkit.weights.classes import named_classes


def model(config="baselines/dino_tiny.py", classes=3, **changes):
    """A detector with random weights, and its config."""
    cfg = get_config(config) if "/" in config else load_config_file(config)
    cfg.train.device = cfg.model.device = "cpu"
    cfg.model.num_classes = classes
    cfg.model.update(changes)
    torch.manual_seed(0)
    return instantiate(cfg.model).eval(), cfg


def distinct(detector):
    """The state dict of a detector whose parameters have other values, none of them equal."""
    generator = torch.Generator().manual_seed(1)
    for parameter in detector.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return detector.state_dict()


def test_coco_by_id_has_the_names_of_coco_at_their_ids():
    """91 rows are indexed by category id: person is row 1, toothbrush row 90, and eleven rows stand for nothing."""
    names = coco_names_by_id()
    assert len(names) == 91 and names[1] == "person" and names[90] == "toothbrush" and names[12] == "(unused 12)"
    named = [name for name in names if not name.startswith("(unused")]
    assert named == coco_names() and len(set(names)) == 91


def begin_with(path, ours, names, known):
    """What a training with the classes `names` begins with; `known` are those of the file, if it does not say."""
    model, cfg = ours
    theirs = classes_of_weights(path, names, of_detrex=True)
    theirs = Classes.named(known) if known else theirs
    with class_heads_matched(cfg, model, path, theirs, Classes.named(names)):
        SafeCheckpointer(model).load(str(path))
    return model.state_dict()


def test_a_detector_begins_with_the_rows_of_its_classes(tmp_path):
    """COCO's "person" goes to ours, in each decoder layer, the encoder and the embedding of labels; a class that COCO
    does not have begins anew; all else is the file's."""
    ours = model(classes=3)
    initial = copy.deepcopy(ours[0].state_dict())
    theirs = distinct(model(classes=80)[0])
    write_weights(tmp_path / "x.pth", theirs, all_formats()["mmdet_dino"])
    fitted = begin_with(tmp_path / "x.pth", ours, ["person", "helmet", "dog"], None)
    heads = [name for name in initial if initial[name].shape != theirs[name].shape]
    assert len(heads) == 2 * 2 * 4 + 1  # weights and biases of three layers and the encoder, under two names; labels
    for name in heads:
        assert torch.equal(fitted[name][0], theirs[name][0]) and torch.equal(fitted[name][2], theirs[name][16])
        assert torch.equal(fitted[name][1], initial[name][1])
    rest = [name for name in initial if name not in heads and not name.endswith("num_batches_tracked")]
    assert all(torch.equal(fitted[name], theirs[name]) for name in rest)


@pytest.mark.parametrize("known", [True, False])
def test_the_objectness_of_the_encoder_is_no_class(tmp_path, known):
    """H-Deformable-DETR and Deformable DETR choose proposals by row 0 of the encoder's head, whatever row 0 is of the
    decoder's: "person" of 80 classes, nothing of 91. It is kept even where no names are known."""
    rows, config = 91 if known else 7, "baselines/h_deformable_detr_tiny.py"
    ours = model(config, 3)
    initial = copy.deepcopy(ours[0].state_dict())
    theirs = distinct(model(config, rows)[0])
    write_weights(tmp_path / "x.pth", theirs, all_formats()["h_detr"])
    fitted = begin_with(tmp_path / "x.pth", ours, ["dog", "helmet", "person"], None)
    last = max(int(name.split(".")[1]) for name in initial if name.startswith("class_embed."))
    for name in (f"class_embed.{last}.weight", f"transformer.decoder.class_embed.{last}.bias"):
        assert torch.equal(fitted[name][0], theirs[name][0])
        assert torch.equal(fitted[name][1:], initial[name][1:])
    first = "class_embed.0.weight"
    expected = [theirs[first][18], initial[first][1], theirs[first][1]] if known else list(initial[first])
    assert all(torch.equal(row, wanted) for row, wanted in zip(fitted[first], expected, strict=True))


def test_auxiliary_heads_have_rows_by_class_too(tmp_path):
    """Faster R-CNN's last row is the background, and it has four rows of boxes for each class."""
    ours = model("co_dino_tiny", 2)
    initial = copy.deepcopy(ours[0].state_dict())
    theirs = distinct(model("co_dino_tiny", 3)[0])
    write_weights(tmp_path / "x.pth", theirs, all_formats()["mmdet_co_dino"])
    fitted = begin_with(tmp_path / "x.pth", ours, ["c", "x"], ["a", "b", "c"])
    rcnn, atss = "collaboration.heads.faster_rcnn.", "collaboration.heads.atss."
    scores, boxes = fitted[f"{rcnn}class_pred.weight"], fitted[f"{rcnn}box_pred.bias"]
    assert torch.equal(scores[0], theirs[f"{rcnn}class_pred.weight"][2])
    assert torch.equal(scores[1], initial[f"{rcnn}class_pred.weight"][1])
    assert torch.equal(scores[2], theirs[f"{rcnn}class_pred.weight"][3])
    assert torch.equal(boxes[:4], theirs[f"{rcnn}box_pred.bias"][8:12])
    assert torch.equal(boxes[4:], initial[f"{rcnn}box_pred.bias"][4:])
    assert torch.equal(fitted[f"{atss}class_pred.bias"][0], theirs[f"{atss}class_pred.bias"][2])
    assert torch.equal(fitted[f"{atss}box_pred.bias"], theirs[f"{atss}box_pred.bias"])


def test_a_published_file_of_detrex_has_cocos_rows(tmp_path):
    """Its 80 rows are COCO's, although it does not say so; a file of 80 other classes keeps them."""
    ours = model(classes=1)
    theirs = distinct(model(classes=80)[0])
    torch.save({"model": theirs}, tmp_path / "x.pth")
    fitted = begin_with(tmp_path / "x.pth", ours, ["dog"], None)
    assert torch.equal(fitted["class_embed.0.weight"][0], theirs["class_embed.0.weight"][16])
    others = [f"class {number}" for number in range(80)]
    assert classes_of_weights(tmp_path / "x.pth", others, of_detrex=True) is None
    assert classes_of_weights(tmp_path / "x.pth") is None


def test_the_names_in_a_file_count():
    """mmdetection's and Hugging Face's own words; not of another number, nor the names that stand for none."""
    one = WeightsFile(Path("x"), {}, {"meta": {"dataset_meta": {"classes": ("cat", "dog")}}})
    two = WeightsFile(Path("x"), {}, {"meta": {"CLASSES": ["cat", "dog"]}})
    three = WeightsFile(Path("x"), {}, {"config": {"id2label": {"0": "N/A", "1": "person"}}})
    four = WeightsFile(Path("x"), {}, {"config": {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}})
    assert named_classes(one, 2) == named_classes(two, 2) == ["cat", "dog"] and named_classes(one, 3) is None
    assert named_classes(three, 2) == ["(unused 0)", "person"] and named_classes(four, 2) is None


def test_a_file_of_91_rows_reports_cocos_names_alone(tmp_path):
    """A detector says "person" for row 1, and nothing for row 0, whatever scores there."""
    from align_detr import Detector

    detector, _ = model("baselines/conditional_detr_tiny.py", 91, select_box_nums_for_evaluation=300)
    state = detector.state_dict()
    state["class_embed.bias"].fill_(-9)
    state["class_embed.bias"][[0, 1, 12]] = 5
    write_weights(tmp_path / "x.bin", state, all_formats()["hf_conditional_detr"])
    assert classes_of_weights(tmp_path / "x.bin").names[1] == "person"
    assert look_at(tmp_path / "x.bin").assumed

    cfg = get_config("baselines/conditional_detr_tiny.py")
    cfg.model.select_box_nums_for_evaluation = 300
    cfg.train.ignore_checkpoint_settings = list(LACKING)
    detect = Detector(config=cfg, weights=tmp_path / "x.bin", device="cpu")
    image = (torch.rand(96, 128, 3) * 255).byte().numpy()
    (result,) = detect(image, score_threshold=0.5)
    assert set(result.labels) == {"person"} and {entry["category_id"] for entry in result.to_coco(1)} == {1}
