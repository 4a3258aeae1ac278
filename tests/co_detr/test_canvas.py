"""The square canvas of models that were trained with large-scale jitter."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances

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


def test_an_image_larger_than_the_canvas_is_reported():
    model = tiny("model.canvas_size=50")
    with pytest.raises(ValueError, match="48 x 64 pixels is larger than model.canvas_size=50"):
        model.eval()(images((48, 64)))


def test_a_graph_has_no_canvas():
    with pytest.raises(ValueError, match="canvas_size=96: a graph has no canvas"):
        tiny("model.canvas_size=96").eval()(torch.zeros(1, 3, 96, 96))


def test_it_is_off_by_default():
    assert "canvas_size" not in load("co_dino_tiny").model and tiny().canvas_size == 0
