"""Detections in the pixels of the original image."""

import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances


def test_boxes_are_scaled_clipped_and_emptied():
    """Boxes are scaled per axis and clipped to the image; instances outside are removed."""
    boxes = torch.tensor([[10.0, 10.0, 20.0, 30.0], [90.0, 40.0, 130.0, 60.0], [101.0, 0.0, 120.0, 10.0]])
    detections = Instances((50, 100), pred_boxes=Boxes(boxes.clone()), scores=torch.tensor([0.9, 0.8, 0.7]))
    result = detector_postprocess(detections, output_height=100, output_width=300)
    assert result.image_size == (100, 300)
    assert result.pred_boxes.tensor.tolist() == [[30, 20, 60, 60], [270, 80, 300, 100]]
    assert result.scores.tolist() == detections.scores[:2].tolist()
    torch.testing.assert_close(detections.pred_boxes.tensor, boxes)


def test_no_detections():
    """An image without detections gives an empty result of the right size."""
    empty = Instances((50, 100), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    result = detector_postprocess(empty, 10, 20)
    assert len(result) == 0 and result.image_size == (10, 20)
