import pytest
import torch
from detectron2.structures import Boxes, Instances
from projects.detr_common import detections_from_predictions, targets_from_instances


def test_targets_are_relative_to_each_image_not_to_the_batch():
    """Boxes are normalised by the size of the image, not of the padded batch."""
    wide = Instances((50, 200), gt_boxes=Boxes(torch.tensor([[20.0, 10, 60, 30]])), gt_classes=torch.tensor([4]))
    empty = Instances((80, 40), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.long))
    first, second = targets_from_instances([wide, empty])
    torch.testing.assert_close(first["boxes"], torch.tensor([[0.2, 0.4, 0.2, 0.4]]))
    assert first["labels"].tolist() == [4]
    assert second["boxes"].shape == (0, 4)


def test_detections_are_the_best_pairs_of_query_and_class():
    """A query may give detections of several classes, each with the box of its query."""
    torch.manual_seed(0)
    logits, boxes, sizes = torch.randn(2, 6, 3), torch.rand(2, 6, 4), [(40, 60), (30, 90)]
    detections = detections_from_predictions(logits, boxes, sizes, limit=7)
    for image, (height, width) in enumerate(sizes):
        pairs = sorted(
            ((logits[image, q, c].sigmoid().item(), q, c) for q in range(6) for c in range(3)), reverse=True
        )[:7]
        assert detections[image].image_size == (height, width)
        assert detections[image].pred_classes.tolist() == [c for _, _, c in pairs]
        for (score, q, _), got, box in zip(pairs, detections[image].scores, detections[image].pred_boxes, strict=True):
            x, y, w, h = (boxes[image, q] * torch.tensor([width, height, width, height])).tolist()
            assert abs(score - got.item()) < 1e-6
            expected = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            torch.testing.assert_close(box, expected, rtol=1e-4, atol=1e-4)


def test_a_limit_above_all_pairs_is_refused():
    """Such a config fails at the first evaluation, as in detrex, with a message that names the option."""
    with pytest.raises(ValueError, match="select_box_nums_for_evaluation=300, but 2 queries and 3 classes give only 6"):
        detections_from_predictions(torch.randn(1, 2, 3), torch.rand(1, 2, 4), [(8, 8)], limit=300)
