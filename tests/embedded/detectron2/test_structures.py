"""Boxes, Instances and ImageList."""

import copy
import pickle

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, ImageList, Instances, pairwise_iou
from hypothesis import given, settings
from hypothesis import strategies as st

position, length = st.integers(-400, 400), st.integers(0, 200)
# In quarters of a pixel, so that float32 is exact.
corner_boxes = st.lists(st.tuples(position, position, length, length), max_size=5).map(
    lambda rows: torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows]).reshape(-1, 4) / 4
)


@settings(deadline=None)
@given(corner_boxes)
def test_box_mode_there_and_back(boxes):
    """Corners to sizes and back gives the same boxes, for every type of container, and leaves the input alone."""
    before = boxes.clone()
    sizes = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    back = BoxMode.convert(sizes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert torch.equal(back, boxes)
    assert torch.equal(boxes, before)
    array = BoxMode.convert(boxes.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    np.testing.assert_array_equal(array, sizes.numpy())


def test_box_mode_keeps_the_type():
    """A list is converted to a list, for annotation files."""
    assert BoxMode.convert([1, 2, 3, 4], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) == [1, 2, 4, 6]
    assert BoxMode.convert((1, 2, 4, 6), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS) == (1, 2, 3, 4)
    assert BoxMode.convert([1, 2, 3, 4], BoxMode.XYWH_ABS, BoxMode.XYWH_ABS) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="4 numbers, not 3"):
        BoxMode.convert([1, 2, 3], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    with pytest.raises(ValueError, match="needs the size of the image"):
        BoxMode.convert([0, 0, 1, 1], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)


@settings(deadline=None)
@given(corner_boxes, corner_boxes)
def test_pairwise_iou_equals_the_slow_formula(first, second):
    """IoU by plain arithmetic on each pair, with 0 and never NaN for empty boxes."""
    computed = pairwise_iou(Boxes(first), Boxes(second))
    assert computed.shape == (len(first), len(second))
    for i, a in enumerate(first.double().tolist()):
        for j, b in enumerate(second.double().tolist()):
            width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
            height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
            expected = width * height / union if width * height else 0.0
            assert computed[i, j].item() == pytest.approx(expected, abs=1e-6)


def test_boxes():
    """Area, clipping, emptiness, indexing, scaling, centres and concatenation."""
    boxes = Boxes([[-5, 2, 20, 8], [3, 3, 3, 9], [1, 1, 4, 5]])
    assert boxes.area().tolist() == [150, 0, 12]
    boxes.clip((6, 10))
    assert boxes.tensor[0].tolist() == [0, 2, 10, 6]
    assert boxes.nonempty().tolist() == [True, False, True]
    assert boxes.nonempty(threshold=3).tolist() == [True, False, False]
    assert len(boxes[0]) == 1
    assert torch.equal(boxes[boxes.nonempty()].tensor, boxes[[0, 2]].tensor)
    copied = boxes.clone()
    copied.scale(2, 0.5)
    assert copied.tensor[0].tolist() == [0, 1, 20, 3]
    assert boxes.tensor[0].tolist() == [0, 2, 10, 6]
    assert len(Boxes.cat([boxes, boxes[:1]])) == 4
    assert len(Boxes([])) == len(Boxes.cat([])) == 0
    assert Boxes(torch.zeros(1, 4, dtype=torch.float64)).tensor.dtype == torch.float32
    with pytest.raises(ValueError, match=r"\(N, 4\), not \(3,\)"):
        Boxes([1, 2, 3])


def instances(n, size=(10, 20)):
    boxes = Boxes(torch.arange(4.0 * n).reshape(n, 4))
    return Instances(size, gt_boxes=boxes, gt_classes=torch.arange(n), names=[f"n{i}" for i in range(n)])


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (1, [1]),
        (-1, [3]),
        (slice(1, 3), [1, 2]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        (torch.tensor([2, 0]), [2, 0]),
        ([3, 1], [3, 1]),
        (torch.zeros(4, dtype=torch.bool), []),
    ],
)
def test_instances_indexing(item, expected):
    """Choosing instances chooses the same entries of every field, tensors, boxes and lists."""
    chosen = instances(4)[item]
    assert chosen.image_size == (10, 20)
    assert len(chosen) == len(expected)
    assert chosen.gt_classes.tolist() == expected
    assert chosen.names == [f"n{i}" for i in expected]
    assert chosen.gt_boxes.tensor[:, 0].tolist() == [4 * i for i in expected]


def test_instances_fields():
    """Fields are attributes of equal length; a field that is missing or too long is an error."""
    objects = instances(2)
    objects.scores = torch.ones(2)
    assert objects.has("scores")
    assert set(objects.get_fields()) == {"gt_boxes", "gt_classes", "names", "scores"}
    objects.remove("scores")
    assert not objects.has("scores")
    with pytest.raises(AttributeError, match="no field 'scores'"):
        _ = objects.scores
    with pytest.raises(ValueError, match="'scores' has 3 entries for 2"):
        objects.scores = torch.ones(3)
    with pytest.raises(IndexError):
        objects[2]
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))
    assert objects.to(torch.float64).gt_classes.dtype == torch.float64
    assert objects.to("cpu").names == ["n0", "n1"]


def test_instances_travel():
    """Instances can be pickled and copied."""
    for again in (pickle.loads(pickle.dumps(instances(2))), copy.deepcopy(instances(2))):
        assert again.gt_classes.tolist() == [0, 1]
        assert again.image_size == (10, 20)


def test_instances_cat():
    """Concatenation joins every field and refuses images of other sizes and other fields."""
    joined = Instances.cat([instances(2), instances(1)])
    assert joined.gt_classes.tolist() == [0, 1, 0]
    assert joined.names == ["n0", "n1", "n0"]
    assert len(joined.gt_boxes) == 3
    with pytest.raises(ValueError, match="differ in image size"):
        Instances.cat([instances(1), instances(1, size=(5, 5))])
    with pytest.raises(ValueError, match="no Instances"):
        Instances.cat([])


@pytest.mark.parametrize(
    ("arguments", "canvas"),
    [
        ({}, (5, 7)),
        ({"size_divisibility": 4}, (8, 8)),
        ({"padding_constraints": {"square_size": 12}}, (12, 12)),
        ({"padding_constraints": {"size_divisibility": 6, "square_size": 0}, "size_divisibility": 4}, (6, 12)),
    ],
)
def test_image_list(arguments, canvas):
    """Images are in the top left corner of a canvas with the backbone's constraints; indexing returns them."""
    images = [torch.rand(3, 5, 4), torch.rand(3, 2, 7)]
    batch = ImageList.from_tensors(images, pad_value=9.0, **arguments)
    assert batch.tensor.shape == (2, 3, *canvas)
    assert batch.image_sizes == [(5, 4), (2, 7)]
    for i, image in enumerate(images):
        assert torch.equal(batch[i], image)
        assert (batch.tensor[i] == 9).sum() == 3 * canvas[0] * canvas[1] - image.numel()
    assert len(batch) == 2
    assert batch.to(torch.float64).tensor.dtype == torch.float64
