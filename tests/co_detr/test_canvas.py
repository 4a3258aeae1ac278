"""The square canvas of models that were trained with large-scale jitter."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances

from detrkit.analysis import detections, predict_layers

from .test_co_dino import images, load, losses_of, tiny


def pasted(batch, side):
    """The images in squares by hand, with the ground truth that they then have."""
    result = []
    for x in batch:
        height, width = x["image"].shape[-2:]
        square = F.pad(x["image"], (0, side - width, 0, side - height), value=114.0)
        instances = Instances((side, side), gt_boxes=x["instances"].gt_boxes, gt_classes=x["instances"].gt_classes)
        result.append({"image": square, "instances": instances, "height": side, "width": side})
    return result


def test_training_and_detections_are_those_of_a_square_image():
    """The losses are those of the pasted image; detections are the same boxes, without those outside the image."""
    model, canvas = tiny(), tiny("model.canvas_size=96")
    canvas.load_state_dict(model.state_dict())
    batch = images((48, 64), (64, 40))
    expected = losses_of(model, pasted(batch, 96))
    for name, loss in losses_of(canvas, batch).items():
        torch.testing.assert_close(loss, expected[name])
    for x in batch:
        x["height"], x["width"] = 2 * x["height"], 2 * x["width"]
    with torch.no_grad():
        found = canvas.eval()(batch)
        whole = model.eval()(pasted(batch, 96))
    for x, ours, theirs in zip(batch, found, whole, strict=True):
        boxes = Boxes(theirs["instances"].pred_boxes.tensor * 2)
        boxes.clip((x["height"], x["width"]))
        inside = boxes.nonempty()
        torch.testing.assert_close(ours["instances"].pred_boxes.tensor, boxes.tensor[inside])
        torch.testing.assert_close(ours["instances"].scores, theirs["instances"].scores[inside])


def test_reports_and_the_demo_see_boxes_of_the_image():
    """Predictions of the last layer, as reports and `align-detr demo` read them, are the model's detections."""
    model = tiny("model.canvas_size=96").eval()
    batch = [{**x, "height": 96, "width": 128} for x in images((48, 64))]
    logits, boxes = predict_layers(model, batch)
    (found,) = detections(model, logits[-1], boxes[-1], batch)
    with torch.no_grad():
        expected = model(batch)[0]["instances"]
    assert len(found) == len(expected) > 3
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.scores, expected.scores)


def test_an_image_larger_than_the_canvas_is_reported():
    model = tiny("model.canvas_size=50")
    with pytest.raises(ValueError, match="48 x 64 pixels is larger than model.canvas_size=50"):
        model.eval()(images((48, 64)))


def test_a_graph_has_no_canvas():
    with pytest.raises(ValueError, match="canvas_size=96: a graph has no canvas"):
        tiny("model.canvas_size=96").eval()(torch.zeros(1, 3, 96, 96))


def test_it_is_off_by_default():
    assert "canvas_size" not in load("co_dino_tiny").model and tiny().canvas_size == 0


@pytest.mark.parametrize(
    "name, drop_path, iterations, rate",
    [("12ep_lsj", 0.3, 90000, 2e-4), ("36ep_lsj", 0.5, 270000, 2e-4), ("16ep_o365", 0.3, 120000, 1e-4)],
)
def test_rows_of_swin_large(name, drop_path, iterations, rate):
    """Published settings: jitter on a canvas of 1280 pixels; from Objects365 larger images, more denoising queries."""
    cfg = load(f"co_dino_swin_large_5scale_{name}")
    assert cfg.model.backbone.drop_path_rate == drop_path and cfg.train.max_iter == iterations
    assert cfg.optimizer.lr == rate
    test = cfg.dataloader.test.mapper.augmentation[0]
    if name.endswith("lsj"):
        assert cfg.model.canvas_size == test.short_edge_length == test.max_size == 1280
        assert cfg.dataloader.train.mapper.augmentation_with_crop is None
    else:
        assert (cfg.model.dn_number, cfg.model.box_noise_scale) == (500, 0.4)
        assert (test.short_edge_length, test.max_size) == (1280, 2048)
        sizes = cfg.dataloader.train.mapper.augmentation[1].short_edge_length
        assert (sizes[0], sizes[-1]) == (480, 1536)
    with torch.device("meta"):
        cfg.model.device = "meta"
        instantiate(cfg.model)
