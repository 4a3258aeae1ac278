"""Augmentations: the box of a coloured rectangle is where its colour is, through detrex's mapper and one by one."""

import importlib.util

import numpy as np
import pytest
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BoxMode
from detrex.data import DetrDatasetMapper
from fvcore.transforms.transform import TransformList
from PIL import Image

from detrkit.config.load import load_config
from detrkit.datasets.augmentations import (
    AlbumentationsTransforms,
    ColorJitter,
    LargeScaleJitter,
    TorchvisionTransforms,
)
from detrkit.datasets.mapper import with_rgb_images
from detrkit.datasets.mixing import MixingMapper, mosaic, paste_objects
from detrkit.training import builders

COLORS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
GEOMETRY = [dict(name="RandomHorizontalFlip", p=0.5), dict(name="RandomAffine", degrees=0, translate=[0.3, 0.3])]
OF_LIBRARIES = {
    "torchvision": lambda: TorchvisionTransforms([*GEOMETRY, dict(name="ColorJitter", brightness=0.1)]),
    "albumentations": lambda: AlbumentationsTransforms(
        [dict(name="HorizontalFlip", p=0.5), dict(name="RandomCrop", height=60, width=70, p=1.0)]
    ),
}


@pytest.fixture(params=["jitter", *OF_LIBRARIES])
def augmentation(request):
    if request.param == "jitter":
        return LargeScaleJitter(90, 0.5, 1.5)
    if request.param == "torchvision":
        request.getfixturevalue("timm")  # makes torchvision importable
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return OF_LIBRARIES[request.param]()


def scene(seed=0, count=1):
    """A black image with a rectangle of each colour, none above another, and their boxes."""
    random = np.random.default_rng(seed)
    pixels, boxes = np.zeros((80, 100, 3), np.uint8), []
    for number in range(count):
        x, y = (int(v) for v in random.integers(2, 20, 2))
        x, y = x + 50 * (number % 2), y + 40 * (number // 2)
        box = [x, y, x + 24, y + 16]
        pixels[box[1] : box[3], box[0] : box[2]] = COLORS[number]
        boxes.append(box)
    return pixels, boxes


def extent(pixels, color):
    """The box of the pixels near a colour; None without any."""
    near = (np.abs(pixels.astype(int) - np.array(color)).max(-1) < 100).nonzero()
    return None if not len(near[0]) else [near[1].min(), near[0].min(), near[1].max() + 1, near[0].max() + 1]


def inside(box, pixels):
    height, width = pixels.shape[:2]
    clipped = np.array(box).clip(0, [width, height, width, height])
    return clipped if (clipped[2:] > clipped[:2]).all() else None


def test_boxes_follow_the_pixels(augmentation):
    """With all boxes at once, as the engine has it, and image first, then box by box, as detrex has it."""
    seen = 0
    for seed in range(12):
        pixels, (box,) = scene(seed)
        np.random.seed(seed)
        together = T.AugInput(pixels, boxes=np.array([box], float))
        T.AugmentationList([augmentation])(together)
        np.random.seed(seed)
        alone = T.AugInput(pixels)
        transforms = T.AugmentationList([augmentation])(alone)
        assert isinstance(transforms, TransformList)
        assert np.array_equal(alone.image, together.image)
        found = transforms.apply_box(np.array([box], float))[0]
        np.testing.assert_allclose(found, together.boxes[0], atol=1e-4)
        expected, clipped = extent(together.image, COLORS[0]), inside(found, together.image)
        if clipped is None or min(clipped[2:] - clipped[:2]) < 3:
            continue
        seen += 1
        np.testing.assert_allclose(clipped, expected, atol=1.6)
    assert seen > 4


def test_large_scale_jitter_gives_squares_of_all_scales():
    sizes = set()
    for seed in range(20):
        np.random.seed(seed)
        given = T.AugInput(scene()[0], boxes=np.array([scene()[1][0]], float))
        LargeScaleJitter(64, 0.1, 2.0)(given)
        assert given.image.shape == (64, 64, 3)
        sizes.add(round(given.boxes[0, 2] - given.boxes[0, 0]))
    assert min(sizes) < 6 and max(sizes) > 20


def test_colour_changes_and_boxes_stay():
    """Some images are left alone; the others change in colour, and repeat with the seed."""
    changed = 0
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for seed in range(20):
        results = []
        for _ in range(2):
            np.random.seed(seed)
            given = T.AugInput(pixels, boxes=np.array([[1.0, 2, 3, 4]]))
            ColorJitter(prob=0.5, hue=0.1)(given)
            results.append(given.image)
        assert np.array_equal(*results) and given.boxes.tolist() == [[1, 2, 3, 4]] and given.image.dtype == np.uint8
        changed += not np.array_equal(given.image, pixels)
    assert 4 < changed < 16


@pytest.mark.parametrize("kind, arguments, message", [
    (LargeScaleJitter, {"min_scale": 3}, "LargeScaleJitter: size=1024, scales 3 to 2.0"),
    (ColorJitter, {"hue": 1}, "hue is 0 to 0.5"),
])  # fmt: skip
def test_options_out_of_range(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_names_of_transforms(timm):
    """What a config names has to be a transform of the library: nothing else there is called."""
    for name in ("RandomAffineX", "functional", "Transform.forward"):
        with pytest.raises(ValueError, match="torchvision.transforms.v2 has no transform"):
            TorchvisionTransforms([dict(name=name)])
    with pytest.raises(ValueError, match="torchvision.transforms.v2.RandomAffine: "):
        TorchvisionTransforms([dict(name="RandomAffine", degree=1)])
    removing = TorchvisionTransforms(
        [dict(name="RandomCrop", size=8), dict(name="SanitizeBoundingBoxes", labels_getter=None)]
    )
    with pytest.raises(ValueError, match="boxes were removed"):
        removing.get_transform(scene()[0]).apply_box(np.array([[0.0, 0, 9, 9], [90.0, 70, 99, 79]]))


def mixed(seed, count=4):
    pixels, boxes = scene(seed, count)
    return pixels, [
        {"category_id": n, "bbox": [float(v) for v in box], "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}
        for n, box in enumerate(boxes)
    ]


def test_a_mosaic_has_the_objects_of_four_images():
    """Each image has one colour of its own, so each box is compared with its colour."""
    for seed in range(20):
        images = []
        for number in range(4):
            pixels, annotations = mixed(seed + number, 1)
            pixels = np.where(pixels.any(-1, keepdims=True), np.array(COLORS[number], np.uint8), 0).astype(np.uint8)
            images.append((pixels, [{**annotations[0], "category_id": number}]))
        np.random.seed(seed)
        pixels, annotations = mosaic(images)
        assert pixels.shape == (80, 100, 3)
        for annotation in annotations:
            expected = extent(pixels, COLORS[annotation["category_id"]])
            np.testing.assert_allclose(annotation["bbox"], expected, atol=2.5)
        found = {annotation["category_id"] for annotation in annotations}
        for number in set(range(4)) - found:  # what is left of it, if anything, is small
            assert (np.abs(pixels.astype(int) - COLORS[number]).max(-1) < 100).sum() < 0.25 * 24 * 16 * 1.5


def test_pasted_objects_are_where_their_boxes_are():
    """Pasted patches lie on top; what they cover by more than half is gone from the annotations."""
    for seed in range(20):
        np.random.seed(seed)
        target = (np.full((80, 100, 3), 40, np.uint8), [])
        pixels, annotations = paste_objects(target, mixed(seed, 3), 1)
        assert len(annotations) == 1
        assert extent(pixels, COLORS[annotations[0]["category_id"]]) == annotations[0]["bbox"]
        whole = {"category_id": 9, "bbox": annotations[0]["bbox"], "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}
        np.random.seed(seed)
        _, again = paste_objects((target[0], [whole]), mixed(seed, 3), 1)
        assert [a["category_id"] for a in again] == [annotations[0]["category_id"]]


def test_the_mapper_mixes_and_the_file_keeps_its_name(tmp_path):
    """Through detrex's mapper and the reader of all image kinds; without mixing, the same as before."""
    dataset = []
    for number in range(5):
        pixels, annotations = mixed(number)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        image = {"file_name": str(tmp_path / f"{number}.png"), "image_id": number, "height": 80, "width": 100}
        dataset.append({**image, "annotations": annotations})
    mapper = with_rgb_images(DetrDatasetMapper([T.ResizeShortestEdge(64)], None, is_train=True))
    plain = MixingMapper(mapper, dataset)(dataset[0])
    assert np.array_equal(plain["image"], mapper(dataset[0])["image"]) and len(plain["instances"]) == 4
    np.random.seed(0)
    mixing = MixingMapper(mapper, dataset, mosaic=1.0, copy_paste=1.0)
    counts = []
    for image in dataset:
        example = mixing(image)
        assert example["file_name"] == image["file_name"] and example["image"].shape[1:] == plain["image"].shape[1:]
        assert not np.array_equal(example["image"], mapper(image)["image"])
        counts.append(len(example["instances"]))
    assert max(counts) > 4
    with pytest.raises(ValueError, match="train.mix: mosaic=2"):
        MixingMapper(mapper, dataset, mosaic=2)


def test_objects_are_pasted_with_a_sampler_too(tmp_path, monkeypatch):
    """Configs with a sampler of their own, such as LVIS's, have another loader: `train.mix` applies to it as well."""
    pixels, annotations = mixed(0)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    image = {"file_name": str(tmp_path / "0.png"), "image_id": 0, "height": 80, "width": 100}
    name = f"sampled_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [{**image, "annotations": annotations}])
    MetadataCatalog.get(name).thing_classes = list("abcd")
    cfg = load_config("dino_tiny", ["train.device=cpu", "train.mix.copy_paste=1.0", "model.num_classes=4"])
    cfg.dataloader.train.update(num_workers=0, total_batch_size=1, sampler=L(TrainingSampler)(size=1, seed=0))
    cfg.dataloader.train.dataset.names = name
    used = []
    monkeypatch.setattr(builders, "MixingMapper", lambda mapper, *rest, **options: used.append(options) or mapper)
    (example,) = next(iter(builders.build_loader(cfg, "train")))
    assert used == [{"mosaic": 0.0, "copy_paste": 1.0, "most_pasted": 5}] and len(example["instances"]) == 4
    DatasetCatalog.remove(name)
