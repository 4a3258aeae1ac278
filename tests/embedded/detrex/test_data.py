"""Training examples of DETR detectors."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detrex.data import DetrDatasetMapper
from PIL import Image


@pytest.fixture
def image(tmp_path):
    """The dict of an image with three objects of different classes; the last one is a crowd."""
    np.random.seed(0)
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    boxes = {0: (5, 10, 20, 8), 1: (40, 30, 15, 10), 2: (0, 0, 60, 40)}
    for class_, (x, y, w, h) in list(boxes.items())[:2]:
        pixels[y : y + h, x : x + w, class_] = 255
    path = str(tmp_path / "image.png")
    Image.fromarray(pixels).save(path)
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": class_, "iscrowd": int(class_ == 2)}
        for class_, box in boxes.items()
    ]
    return {"file_name": path, "height": 40, "width": 60, "image_id": 9, "annotations": annotations}


def mapper(**arguments):
    crop = [T.RandomFlip(), T.RandomCrop("absolute_range", (10, 30)), T.ResizeShortestEdge(64)]
    settings = {"augmentation": [T.RandomFlip(), T.ResizeShortestEdge(80)], "augmentation_with_crop": crop}
    return DetrDatasetMapper(**{**settings, **arguments})


def test_training_example(image):
    """Image tensor, instances without the crowd, and the other entries; the dataset's dict is unchanged."""
    before = {**image, "annotations": [dict(each) for each in image["annotations"]]}
    example = mapper(augmentation_with_crop=None)(image)
    assert example["image"].shape == (3, 80, 120)
    assert example["image"].dtype == torch.uint8
    assert example["image"].is_contiguous()
    assert example["instances"].image_size == (80, 120)
    assert example["instances"].gt_classes.tolist() == [0, 1]
    rest = {key: value for key, value in example.items() if key not in ("image", "instances")}
    assert rest == {key: before[key] for key in ("file_name", "height", "width", "image_id")}
    assert image == before


def test_boxes_stay_on_their_objects(image):
    """With and without crop each box fits its object's pixels and the image; objects outside the crop are removed."""
    read = mapper()
    counts = set()
    for _ in range(60):
        example = read(image)
        height, width = example["image"].shape[1:]
        instances = example["instances"]
        counts.add(len(instances))
        for box, class_ in zip(instances.gt_boxes.tensor.tolist(), instances.gt_classes.tolist(), strict=True):
            ys, xs = torch.nonzero(example["image"][class_] > 127, as_tuple=True)
            if len(ys) == 0:
                # Less than half a pixel of the object is left.
                assert min(box[2] - box[0], box[3] - box[1]) < height / 10
                continue
            object_box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            np.testing.assert_allclose(box, object_box, atol=2)
            assert 0 <= box[0] <= box[2] <= width
            assert 0 <= box[1] <= box[3] <= height
    assert {0, 2} <= counts <= {0, 1, 2}


def test_branches_are_taken_half_the_time(image):
    """Both lists of augmentations have equal probability; without a second list the first is used."""
    read = mapper(augmentation=[T.ResizeShortestEdge(10)], augmentation_with_crop=[T.ResizeShortestEdge(20)])
    short = [min(read(image)["image"].shape[1:]) for _ in range(200)]
    assert set(short) == {10, 20}
    assert 70 < short.count(20) < 130


def test_evaluation_example(image):
    """At test time there is no ground truth, no crop and no randomness."""
    read = mapper(augmentation=[T.ResizeShortestEdge(80)], is_train=False)
    examples = [read(image) for _ in range(8)]
    assert all("instances" not in example and "annotations" not in example for example in examples)
    assert all(torch.equal(example["image"], examples[0]["image"]) for example in examples)
    assert (examples[0]["height"], examples[0]["width"]) == (40, 60)


def test_image_without_objects(image):
    """An image without objects, or with only a crowd, gives empty instances of the right shapes."""
    for annotations in ([], image["annotations"][2:]):
        instances = mapper()({**image, "annotations": annotations})["instances"]
        assert instances.gt_boxes.tensor.shape == (0, 4)
        assert instances.gt_classes.shape == (0,)
        assert instances.gt_classes.dtype == torch.int64
    del image["annotations"]
    assert "instances" not in mapper()(image)


def test_channel_order(image):
    """`img_format="BGR"` reverses the channels."""
    still = {"augmentation": [], "augmentation_with_crop": None}
    rgb, bgr = (mapper(img_format=order, **still)(image)["image"] for order in ("RGB", "BGR"))
    assert torch.equal(rgb, bgr.flip(0))
    assert mapper(img_format="L", **still)(image)["image"].shape == (1, 40, 60)


def test_wrong_annotations_are_found(image):
    """The error for a wrong image size names the image; `mask_on=True` is an error."""
    with pytest.raises(ValueError, match=r"image.png is 60x40 pixels .* says 61x40"):
        mapper()({**image, "width": 61})
    with pytest.raises(ValueError, match="mask_on=True"):
        mapper(mask_on=True)
