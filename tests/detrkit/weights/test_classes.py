"""Class rows are matched by name: in fine-tuning, in evaluation, and in what is reported."""

from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st

from detrkit.config.load import get_config
from detrkit.weights import (
    Recognised,
    WeightsFile,
    all_formats,
    class_rows,
    classes_of_weights,
    coco_names,
    coco_names_by_id,
    look_at,
    write_weights,
)
from detrkit.weights.class_heads import fit_class_heads
from detrkit.weights.classes import match_classes, named_classes, pick_rows, report_as
from detrkit.weights.loading import Prepared

NAMES = st.text("abAB", min_size=1, max_size=3)


def model(config="baselines/dino_tiny.py", classes=3, **changes):
    cfg = get_config(config)
    cfg.train.device = cfg.model.device = "cpu"
    cfg.model.num_classes = classes
    cfg.model.update(changes)
    torch.manual_seed(0)
    return instantiate(cfg.model).eval()


def distinct(state, seed=1):
    """A state dict of the same shapes with other values, none of them equal."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}


def test_coco_by_id_has_the_names_of_coco_at_their_ids():
    """91 rows are indexed by category id: person is row 1, toothbrush row 90, and eleven rows stand for nothing."""
    names = coco_names_by_id()
    assert len(names) == 91 and names[1] == "person" and names[90] == "toothbrush" and names[0] == names[12] == ""
    assert [name for name in names if name] == coco_names() and names.count("") == 11


@given(st.lists(NAMES, unique_by=str.casefold), st.lists(NAMES, unique_by=str.casefold))
def test_rows_have_the_names_of_our_classes(ours, theirs):
    """Against the obvious loop; case does not matter."""
    for name, row in zip(ours, class_rows(ours, theirs), strict=True):
        expected = [n for n, other in enumerate(theirs) if other.lower() == name.lower()]
        assert ([] if row is None else [row]) == expected


def test_an_unused_row_is_never_taken():
    """A row without a name fits no class, not even one without a name."""
    assert class_rows(["person", "", "N/A"], ["", "person", ""]) == [1, None, None]


def test_picked_rows_are_theirs_and_the_others_initial():
    """Rows of weight and bias alike."""
    theirs, initial = torch.arange(6.0).view(3, 2), -torch.ones(4, 2)
    picked = pick_rows(theirs, initial, [2, None, 0, None])
    assert picked.tolist() == [[4, 5], [-1, -1], [0, 1], [-1, -1]]
    assert (initial == -1).all()


def test_a_detector_begins_with_the_rows_of_its_classes():
    """COCO's "person" goes to ours, in each decoder layer, the encoder and the embedding of labels; a class that COCO
    does not have begins anew; nothing else changes."""
    ours = model(classes=3).state_dict()
    theirs = distinct(model(classes=80).state_dict())
    fitted, fit = fit_class_heads(theirs, ours, ["Person", "helmet", "dog"], coco_names())
    assert fit.carried == ["Person", "dog"] and fit.initial == ["helmet"]
    heads = [name for name in ours if ours[name].shape != theirs[name].shape]
    assert len(heads) == 2 * 2 * 4 + 1  # weights and biases of three layers and the encoder, under two names; labels
    for name in heads:
        assert torch.equal(fitted[name][0], theirs[name][0]) and torch.equal(fitted[name][2], theirs[name][16])
        assert torch.equal(fitted[name][1], ours[name][1])
    assert all(fitted[name] is theirs[name] for name in ours if name not in heads)


def test_the_objectness_of_the_encoder_is_no_class():
    """H-Deformable-DETR and Deformable DETR choose proposals by row 0 of the encoder's head, whatever row 0 is of the
    decoder's: "person" of 80 classes, nothing of 91."""
    ours = model("baselines/h_deformable_detr_tiny.py").state_dict()
    theirs = distinct(model("baselines/h_deformable_detr_tiny.py", classes=91).state_dict())
    last = max(int(name.split(".")[1]) for name in ours if name.startswith("class_embed."))
    for names in (coco_names_by_id(), None):
        fitted, _ = fit_class_heads(theirs, ours, ["dog", "helmet", "person"], names)
        for prefix in ("", "transformer.decoder."):
            encoder = f"{prefix}class_embed.{last}.weight"
            assert torch.equal(fitted[encoder][0], theirs[encoder][0])
            assert torch.equal(fitted[encoder][1:], ours[encoder][1:])
    assert torch.equal(fitted["class_embed.0.weight"], ours["class_embed.0.weight"])  # their names are not known
    fitted, _ = fit_class_heads(theirs, ours, ["dog", "helmet", "person"], coco_names_by_id())
    assert torch.equal(fitted["class_embed.0.weight"][0], theirs["class_embed.0.weight"][18])
    assert torch.equal(fitted["class_embed.0.weight"][2], theirs["class_embed.0.weight"][1])


def test_auxiliary_heads_have_rows_by_class_too():
    """Faster R-CNN's last row is the background, and it has four rows of boxes for each class."""
    from detrkit.config.load import load_config_file

    def co_dino(classes):
        cfg = load_config_file("co_dino_tiny")
        cfg.train.device = cfg.model.device = "cpu"
        cfg.model.num_classes = classes
        return instantiate(cfg.model).state_dict()

    ours, theirs = co_dino(2), distinct(co_dino(3))
    fitted, _ = fit_class_heads(theirs, ours, ["c", "x"], ["a", "b", "c"])
    rcnn, atss = "collaboration.heads.faster_rcnn.", "collaboration.heads.atss."
    scores, boxes = fitted[f"{rcnn}class_pred.weight"], fitted[f"{rcnn}box_pred.bias"]
    assert torch.equal(scores[0], theirs[f"{rcnn}class_pred.weight"][2])
    assert torch.equal(scores[1], ours[f"{rcnn}class_pred.weight"][1])
    assert torch.equal(scores[2], theirs[f"{rcnn}class_pred.weight"][3])
    assert torch.equal(boxes[:4], theirs[f"{rcnn}box_pred.bias"][8:12])
    assert torch.equal(boxes[4:], ours[f"{rcnn}box_pred.bias"][4:])
    assert torch.equal(fitted[f"{atss}class_pred.bias"][0], theirs[f"{atss}class_pred.bias"][2])
    assert torch.equal(fitted[f"{atss}box_pred.bias"], theirs[f"{atss}box_pred.bias"])


def test_the_same_classes_stay_as_they_are():
    """Files whose classes are not known are taken at their word, if the number is right; a guess that does not hold is
    dropped, for 80 rows need not be COCO's."""
    state = model().state_dict()
    assert fit_class_heads(state, state, ["a", "b", "c"], None)[0].keys() == state.keys()
    assert match_classes(["a", "b"], ["a", "b"]) is None
    assert match_classes(["b", "a"], ["a", "b"]) == [1, 0]
    others = [f"class {number}" for number in range(79)] + ["person"]
    assert match_classes(others, coco_names(), assumed=True) is None
    assert match_classes(others, coco_names(), assumed=False)[-1] == 0
    assert match_classes(coco_names()[::-1], coco_names(), assumed=True) == list(range(79, -1, -1))


def test_the_names_in_a_file_count():
    """mmdetection's and Hugging Face's own words; not of another number, nor the names that stand for none."""
    one = WeightsFile(Path("x"), {}, {"meta": {"dataset_meta": {"classes": ("cat", "dog")}}})
    two = WeightsFile(Path("x"), {}, {"meta": {"CLASSES": ["cat", "dog"]}})
    three = WeightsFile(Path("x"), {}, {"config": {"id2label": {"0": "N/A", "1": "person"}}})
    four = WeightsFile(Path("x"), {}, {"config": {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}})
    assert named_classes(one, 2) == named_classes(two, 2) == ["cat", "dog"] and named_classes(one, 3) is None
    assert named_classes(three, 2) == ["", "person"] and named_classes(four, 2) is None


def found(*classes):
    count = len(classes)
    boxes = Boxes(torch.arange(4.0 * count).view(count, 4))
    return Instances((9, 9), pred_boxes=boxes, scores=torch.rand(count), pred_classes=torch.tensor(classes))


def test_detections_are_reported_as_the_classes_of_the_data():
    """An output that has no class of the data, or none at all, is not reported as another class."""
    detector = torch.nn.Module()
    detector.inference = lambda *arguments: [found(0, 1, 18, 90), found(0)]
    report_as(detector, class_rows(["dog", "person"], coco_names_by_id()), 91)
    first, second = detector.inference()
    assert first.pred_classes.tolist() == [1, 0] and first.pred_boxes.tensor[:, 0].tolist() == [4, 8]
    assert len(second) == 0


def test_weights_that_know_none_of_the_classes_are_not_evaluated():
    """An AP of zero would look like a bad detector."""
    known = all_formats()["mmdet_dino"]
    prepared = Prepared(Recognised(WeightsFile(Path("x.pth"), {}), known, coco_names(), True, {}), [])
    with pytest.raises(ValueError, match="x.pth .* knows none of the classes"):
        prepared.report_classes_of(torch.nn.Module(), ["circle", "square"])


def test_a_file_of_91_rows_reports_cocos_names_alone(tmp_path):
    """A detector says "person" for row 1, and nothing for row 0, whatever scores there."""
    from align_detr import Detector

    detector = model("baselines/conditional_detr_tiny.py", classes=91, select_box_nums_for_evaluation=300)
    state = detector.state_dict()
    state["class_embed.bias"].fill_(-9)
    state["class_embed.bias"][[0, 1, 12]] = 5
    write_weights(tmp_path / "x.bin", state, all_formats()["hf_conditional_detr"])
    assert classes_of_weights(tmp_path / "x.bin").names[1] == "person"
    assert look_at(tmp_path / "x.bin").assumed

    cfg = get_config("baselines/conditional_detr_tiny.py")
    cfg.model.select_box_nums_for_evaluation = 300
    detect = Detector(config=cfg, weights=tmp_path / "x.bin", device="cpu")
    image = (torch.rand(96, 128, 3) * 255).byte().numpy()
    (result,) = detect(image, score_threshold=0.5)
    assert set(result.labels) == {"person"} and {entry["category_id"] for entry in result.to_coco(1)} == {1}
