"""Datasets, their registration, samplers and loaders."""

import json
import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from PIL import Image

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


@pytest.fixture
def coco(tmp_path):
    """Writes an annotation file and its (empty) image folder, and returns both paths."""
    (tmp_path / "images").mkdir()

    def write(content):
        path = tmp_path / "annotations.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path), str(tmp_path / "images")

    return write


@pytest.fixture
def register():
    """Registers datasets for the length of a test."""
    names = []

    def add(name, *arguments):
        names.append(name)
        register_coco_instances(name, *arguments)

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def annotation(id_, image, category=3, crowd=0, **more):
    return {"id": id_, "image_id": image, "category_id": category, "bbox": [1, 2, 3, 4], "iscrowd": crowd, **more}


def content(annotations=(), **more):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 10 + i, "width": 20} for i in (2, 1, 4)]
    return {"images": images, "annotations": list(annotations), "categories": CATEGORIES, **more}


def test_load_coco_json(coco):
    """Images are sorted by id, with their objects, also empty images; crowds are marked; classes start from 0."""
    path, root = coco(content([annotation(1, 2), annotation(2, 2, category=7, crowd=1, area=5), annotation(3, 4)]))
    images = load_coco_json(path, root, extra_annotation_keys=["area"])
    assert [(i["image_id"], i["height"], i["width"]) for i in images] == [(1, 11, 20), (2, 12, 20), (4, 14, 20)]
    assert images[0]["file_name"] == f"{root}/1.jpg"
    assert [len(image["annotations"]) for image in images] == [0, 2, 1]
    first, crowd = images[1]["annotations"]
    box = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS}
    assert first == {**box, "category_id": 0, "iscrowd": 0}
    assert crowd == {**box, "category_id": 1, "iscrowd": 1, "area": 5}


def test_loading_declares_the_classes(coco, register):
    """Evaluation maps class numbers back to the file's ids through the metadata."""
    register("declared", {}, *coco(content()))
    DatasetCatalog.get("declared")
    metadata = MetadataCatalog.get("declared")
    assert metadata.thing_classes == ["dog", "cat"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    DatasetCatalog.get("declared")


def test_coco_is_registered():
    """COCO 2017 has its 80 classes, and its ids with gaps, without any file."""
    metadata = MetadataCatalog.get("coco_2017_val")
    assert len(metadata.thing_classes) == 80
    ids = metadata.thing_dataset_id_to_contiguous_id
    assert (ids[1], ids[13], ids[90]) == (0, 11, 79)
    assert (metadata.thing_classes[0], metadata.thing_classes[11], metadata.thing_classes[79]) == (
        "person",
        "stop sign",
        "toothbrush",
    )
    assert metadata.json_file.endswith("coco/annotations/instances_val2017.json")
    assert "coco_2017_train" in DatasetCatalog.list()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{", "annotations.json is not JSON"),
        (b"\xff\xfe\x00".decode("latin1"), "annotations.json is not JSON"),
        ([1], "no list of images, annotations, categories"),
        ({"images": [], "annotations": []}, "no list of categories"),
        (content([{"id": 1, "image_id": 2, "category_id": 3}]), "lacks or misuses 'bbox'"),
        (content([annotation(1, 2, bbox=[1, 2, 3])]), r"annotation 1 has the box \[1, 2, 3\]"),
        (content([annotation(1, 2, bbox=[1, 2, 3, float("nan")])]), "annotation 1 has the box"),
        (content(categories=[{"id": 3}]), "lacks or misuses 'name'"),
        (content(images=[{"id": 1, "file_name": "1.jpg", "width": 3}]), "lacks or misuses 'height'"),
        (
            content([annotation(i, 2, category=i) for i in range(3, 9)]),
            r"outside the 2 declared classes: 4 \(annotation 4\), 5 \(annotation 5\), 6 \(annotation 6\) and 1 more",
        ),
    ],
)
def test_annotation_files_that_are_none(coco, broken, message):
    """Errors in an annotation file are one line with the file's name."""
    path, root = coco(broken)
    with pytest.raises(ValueError, match=message) as caught:
        load_coco_json(path, root)
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)


def test_declared_classes_win(coco, register):
    """Categories that are not registered are an error; they cannot shift the class numbers."""
    declared = {"thing_classes": ["cat"], "thing_dataset_id_to_contiguous_id": {7: 0}}
    register("cats", declared, *coco(content([annotation(5, 1, category=7), annotation(9, 1)])))
    with pytest.raises(ValueError, match=r"outside the 1 declared classes: 3 \(annotation 9\)"):
        DatasetCatalog.get("cats")


@pytest.mark.parametrize("missing", ["file", "folder"])
def test_missing_dataset_says_where_it_should_be(coco, register, monkeypatch, tmp_path, missing):
    """The message has the path, the environment variable and its value, and both expected paths."""
    path, root = coco(content())
    if missing == "file":
        path += "x"
    else:
        root += "x"
    register("absent", {"root_env": "SOME_ROOT"}, path, root)
    for value, said in ((None, "it is not set"), (str(tmp_path), f"it is {str(tmp_path)!r}")):
        if value:
            monkeypatch.setenv("SOME_ROOT", value)
        with pytest.raises(FileNotFoundError) as caught:
            DatasetCatalog.get("absent")
        message = str(caught.value)
        assert "\n" not in message
        for part in (
            f"{path if missing == 'file' else root} does not exist",
            path,
            root,
            "SOME_ROOT",
            said,
            "'absent'",
        ):
            assert part in message


def test_catalogs():
    """Names are unique, unknown names get a suggestion, and metadata cannot be changed."""
    with pytest.raises(ValueError, match="did you mean 'coco_2017_train'"):
        DatasetCatalog.get("coco_2017_trian")
    with pytest.raises(ValueError, match="already registered"):
        DatasetCatalog.register("coco_2017_train", list)
    with pytest.raises(TypeError, match="with a function"):
        DatasetCatalog.register("a_list", [])
    metadata = MetadataCatalog.get("nobody's")
    metadata.set(a=1).b = 2
    metadata.a = 1
    assert metadata.as_dict() == {"name": "nobody's", "a": 1, "b": 2}
    assert metadata.get("c", 3) == 3
    with pytest.raises(AttributeError, match="\"nobody's\" has no 'c'; it has: name, a, b"):
        _ = metadata.c
    with pytest.raises(ValueError, match="already 1, not 2"):
        metadata.a = 2
    MetadataCatalog.remove("nobody's")


def test_dataset_dicts(coco, register):
    """Training leaves out images with only crowds; several datasets are joined if their classes agree."""
    path, root = coco(content([annotation(1, 2), annotation(2, 4, crowd=1)]))
    register("one", {}, path, root)
    register("two", {}, path, root)
    assert [image["image_id"] for image in get_detection_dataset_dicts("one")] == [2]
    assert len(get_detection_dataset_dicts(["one", "two"], filter_empty=False)) == 6
    with pytest.raises(ValueError, match="one, coco_like do not have the same classes"):
        DatasetCatalog.register("coco_like", lambda: [])
        MetadataCatalog.get("coco_like").thing_classes = ["other"]
        get_detection_dataset_dicts(["one", "coco_like"])
    with pytest.raises(ValueError, match=r"no images with objects in the datasets \[coco_like\]"):
        get_detection_dataset_dicts("coco_like")
    DatasetCatalog.remove("coco_like")
    MetadataCatalog.remove("coco_like")


# --- images ----------------------------------------------------------------------------------------------------------


def image_in_mode(mode):
    """A 4x6 image, left half dark and right half bright, in any of PIL's modes."""
    grey = np.full((4, 6), 40, dtype=np.uint8)
    grey[:, 3:] = 200
    if mode.startswith("I;16"):
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode == "LA":
        return Image.merge("LA", [Image.fromarray(grey), Image.new("L", (6, 4), 255)])
    return Image.fromarray(grey).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", "png"), ("L", "jpg"), ("RGBA", "png"), ("P", "png"), ("CMYK", "jpg"), ("I;16", "png"), ("LA", "png")],
)
@pytest.mark.parametrize("format", ["RGB", "BGR", "L"])
def test_read_image_of_any_kind(tmp_path, mode, suffix, format):
    """Grey, transparent, palette, CMYK and 16-bit files give the same image."""
    path = str(tmp_path / f"image.{suffix}")
    image_in_mode(mode).save(path)
    image = utils.read_image(path, format)
    assert image.dtype == np.uint8
    assert image.shape == (4, 6, 1 if format == "L" else 3)
    assert image.flags.writeable
    expected = np.where(np.arange(6)[None, :, None] < 3, 40, 200)
    assert np.abs(image.astype(int) - expected).max() <= 6


@pytest.mark.parametrize("format", ["RGB", "BGR", "L"])
def test_transparent_pixels_are_white(tmp_path, format):
    """Transparent pixels are white for all kinds of transparency."""
    hidden = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    hidden.paste((40, 40, 40, 255), (0, 0, 3, 4))
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([40, 40, 40, 0, 0, 0])
    palette.paste(0, (0, 0, 3, 4))
    wide = np.full((4, 6), 40 * 257, np.uint16)
    wide[:, 3:] = 40 * 257 + 1
    files = {
        "rgba.png": (hidden, {}),
        "la.png": (hidden.convert("LA"), {}),
        "palette.png": (palette, {"transparency": 1}),
        "grey.png": (hidden.convert("L"), {"transparency": 0}),
        "wide.png": (Image.fromarray(wide), {"transparency": 40 * 257 + 1}),
        "rgba.tif": (hidden, {}),
        "rgba.webp": (hidden, {"lossless": True}),
    }
    for name, (image, options) in files.items():
        image.save(tmp_path / name, **options)
        pixels = utils.read_image(str(tmp_path / name), format)
        assert np.array_equal(pixels[..., 0], np.where(np.arange(6) < 3, 40, 255)[None].repeat(4, 0)), name


WIDE_VALUES = {  # (largest value, type): what it is read as; None: refused
    (65535, np.uint16): 255,
    (40 * 257, np.uint16): 40,
    (4095, np.uint16): None,
    (0, np.uint16): 0,
    (65535, np.int32): 255,
    (255, np.int32): None,
    (65536, np.int32): None,
    (1, np.float32): 255,
    (0.5, np.float32): 128,
    (255, np.float32): None,
    (np.nan, np.float32): None,
}


@pytest.mark.parametrize("most, dtype", WIDE_VALUES)
def test_values_of_more_than_8_bits(tmp_path, most, dtype):
    """Images of more than 8 bits have a fixed scale; other value ranges are errors."""
    path = str(tmp_path / "x.tif")
    Image.fromarray(np.array([[0, most]], dtype)).save(path)
    expected = WIDE_VALUES[most, dtype]
    if expected is None:
        with pytest.raises(OSError, match=f"cannot read image file {path}: its values go|it has more than 8 bits"):
            utils.read_image(path, "RGB")
    else:
        assert utils.read_image(path, "RGB").tolist() == [[[0] * 3, [expected] * 3]]


def test_read_image_channel_order(tmp_path):
    """Red is first in RGB and last in BGR, and back again for display."""
    path = str(tmp_path / "red.png")
    Image.new("RGB", (2, 2), (250, 10, 20)).save(path)
    assert utils.read_image(path, "RGB")[0, 0].tolist() == [250, 10, 20]
    bgr = utils.read_image(path, "BGR")
    assert bgr[0, 0].tolist() == [20, 10, 250]
    assert utils.convert_image_to_rgb(bgr, "BGR")[0, 0].tolist() == [250, 10, 20]
    grey = torch.full((2, 2, 1), 300.0)
    assert utils.convert_image_to_rgb(grey, "L").tolist() == [[[255] * 3] * 2] * 2
    assert utils.read_image(path).shape == (2, 2, 3)
    with pytest.raises(ValueError, match="'HSV': choose one of RGB, BGR, L"):
        utils.read_image(path, "HSV")


def test_read_image_applies_exif_rotation(tmp_path):
    """The EXIF rotation is applied, as in COCO's annotations."""
    path = str(tmp_path / "photo.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    image_in_mode("RGB").save(path, exif=exif)
    image = utils.read_image(path, "RGB")
    assert image.shape == (6, 4, 3)
    assert image[0].mean() < 80 < 150 < image[-1].mean()


def test_unreadable_images_are_named(tmp_path):
    """Missing, truncated, and not an image at all: an OSError of one line with the path."""
    missing, cut, text = (str(tmp_path / name) for name in ("missing.jpg", "cut.jpg", "text.jpg"))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(cut)
    with open(cut, "rb+") as file:
        file.truncate(1500)
    with open(text, "w") as file:
        file.write("no image")
    with pytest.raises(FileNotFoundError, match=f"no such image file: {missing}$"):
        utils.read_image(missing, "RGB")
    with pytest.raises(OSError, match=f"cannot read image file {cut}: .*truncated"):
        utils.read_image(cut, "RGB")
    with pytest.raises(OSError, match=f"cannot read image file {text}: not an image$"):
        utils.read_image(text, "RGB")


def test_image_size_is_checked():
    """A wrong image size is an error."""
    image = np.zeros((4, 6, 3))
    bare = {}
    utils.check_image_size(bare, image)
    assert bare == {"width": 6, "height": 4}
    with pytest.raises(ValueError, match=r"image x.jpg is 6x4 pixels .* says 4x6"):
        utils.check_image_size({"file_name": "x.jpg", "width": 4, "height": 6}, image)


def test_annotations_to_instances():
    """Annotations are transformed with their image and clipped to it; empty ones are removed."""
    transforms = T.TransformList([T.HFlipTransform(20), T.ResizeTransform(10, 20, 20, 40)])
    annotations = [
        {"bbox": [0, 1, 4, 3], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 5, "segmentation": []},
        {"bbox": [18, 8, 30, 30], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 6},
        {"bbox": [25, 8, 30, 30], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 7},
    ]
    moved = [utils.transform_instance_annotations(each, transforms, (20, 40)) for each in annotations]
    assert "segmentation" not in moved[0]
    instances = utils.annotations_to_instances(moved, (20, 40))
    assert instances.gt_boxes.tensor.tolist() == [[32, 2, 40, 8], [0, 16, 4, 20], [0, 16, 0, 20]]
    assert instances.gt_classes.dtype == torch.int64
    kept, mask = utils.filter_empty_instances(instances, return_mask=True)
    assert kept.gt_classes.tolist() == [5, 6]
    assert mask.tolist() == [True, True, False]
    assert len(utils.filter_empty_instances(instances, by_box=False)) == 3
    assert len(utils.annotations_to_instances([], (4, 4))) == 0


# --- samplers and loaders --------------------------------------------------------------------------------------------


def as_process(monkeypatch, rank, world_size):
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr(comm, "all_gather", lambda data: [data] * world_size)


@pytest.mark.parametrize("world_size", [1, 3])
def test_training_sampler(monkeypatch, world_size):
    """All processes together get one permutation after another; a seed determines them."""
    parts = []
    for rank in range(world_size):
        as_process(monkeypatch, rank, world_size)
        parts.append(list(islice(TrainingSampler(12, seed=4), 24 // world_size)))
    stream = [index for turn in zip(*parts, strict=True) for index in turn]
    assert sorted(stream[:12]) == sorted(stream[12:]) == list(range(12))
    assert stream[:12] != stream[12:]
    as_process(monkeypatch, 0, 1)
    assert stream == list(islice(TrainingSampler(12, seed=4), 24))
    assert stream != list(islice(TrainingSampler(12, seed=5), 24))
    assert list(islice(TrainingSampler(3, shuffle=False), 5)) == [0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match="the dataset is empty"):
        TrainingSampler(0)


@pytest.mark.parametrize(("size", "world_size"), [(10, 1), (10, 3), (2, 4), (0, 2)])
def test_inference_sampler(monkeypatch, size, world_size):
    """Each image is evaluated once, in contiguous parts of nearly equal length."""
    parts = []
    for rank in range(world_size):
        as_process(monkeypatch, rank, world_size)
        sampler = InferenceSampler(size)
        parts.append(list(sampler))
        assert len(sampler) == len(parts[-1])
    assert [index for part in parts for index in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_dataset_from_list():
    """Items are equal copies, serialized or not."""
    items = [{"a": [1, 2]}, {"b": "x" * 1000}, {}]
    for serialize in (True, False):
        dataset = DatasetFromList(items, serialize=serialize)
        assert [dataset[i] for i in range(len(dataset))] == items
        assert dataset[-2] == items[1]
        dataset[0]["a"].append(3)
        assert dataset[0] == {"a": [1, 2]}
        with pytest.raises(IndexError):
            dataset[3]
    assert DatasetFromList(items, copy=False, serialize=False)[0] is items[0]
    assert len(DatasetFromList([])) == 0


def images(n):
    """Every third image is high, the others wide."""
    return [{"image_id": i, "width": 1 if i % 3 == 0 else 3, "height": 2} for i in range(n)]


def identity(image):
    return image


def test_train_loader_groups_by_shape():
    """No batch mixes wide and high images, each has the batch size, and all images occur equally often."""
    loader = build_detection_train_loader(images(12), mapper=identity, total_batch_size=4)
    batches = list(islice(loader, 12))
    assert all(len(batch) == 4 for batch in batches)
    assert all(len({image["width"] for image in batch}) == 1 for batch in batches)
    counts = Counter(image["image_id"] for batch in batches for image in batch)
    assert set(counts) == set(range(12))
    assert max(counts.values()) <= 5


def test_train_loader_batches(monkeypatch):
    """Without grouping batches follow the sampler; `collate_fn` converts them."""
    arguments = {"mapper": None, "total_batch_size": 6, "sampler": TrainingSampler(12, shuffle=False)}
    ids = lambda batch: [image["image_id"] for image in batch]  # noqa: E731
    plain = build_detection_train_loader(images(12), aspect_ratio_grouping=False, collate_fn=ids, **arguments)
    assert list(islice(plain, 2)) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    grouped = build_detection_train_loader(images(12), collate_fn=ids, **arguments)
    assert next(iter(grouped)) == [1, 2, 4, 5, 7, 8]
    as_process(monkeypatch, 1, 3)
    shared = build_detection_train_loader(images(12), aspect_ratio_grouping=False, collate_fn=ids, **arguments)
    assert len(next(iter(shared))) == 2


@pytest.mark.parametrize("batch_size", [5, 0])
def test_train_loader_needs_a_share_for_each_process(monkeypatch, batch_size):
    """A batch size that is not a multiple of the number of processes is an error."""
    as_process(monkeypatch, 0, 2)
    with pytest.raises(ValueError, match=f"total_batch_size={batch_size} is not a positive multiple of 2"):
        build_detection_train_loader(images(4), mapper=identity, total_batch_size=batch_size)


class Draws:
    """A mapper that adds random numbers."""

    def __call__(self, image):
        return {**image, "drawn": (np.random.rand(), random.random(), torch.rand(()).item())}


def random_numbers(seed, rank, monkeypatch):
    seed_all_rng(seed)
    as_process(monkeypatch, rank, 1)
    loader = build_detection_train_loader(images(8), mapper=Draws(), total_batch_size=2, num_workers=2)
    return [image["drawn"] for _ in range(2) for batch in islice(loader, 8) for image in batch]


def test_augmentation_is_seeded(monkeypatch):
    """Random numbers differ between images, workers, passes and processes, and repeat with the same seed."""
    first = random_numbers(1, 0, monkeypatch)
    assert first == random_numbers(1, 0, monkeypatch)
    streams = [first, random_numbers(1, 1, monkeypatch), random_numbers(2, 0, monkeypatch)]
    for generator in range(3):
        values = [draws[generator] for stream in streams for draws in stream]
        assert len(set(values)) == len(values)


def test_test_loader_covers_the_data():
    """Evaluation gets every image once and in order, with and without workers, for any batch size."""
    for workers, batch_size in ((0, 1), (2, 3)):
        loader = build_detection_test_loader(images(7), mapper=identity, num_workers=workers, batch_size=batch_size)
        batches = [[image["image_id"] for image in batch] for batch in loader]
        assert [index for batch in batches for index in batch] == list(range(7))
        assert len(loader) == len(batches)


class Reads:
    """A mapper that fails."""

    def __call__(self, image):
        return utils.read_image("no/such.jpg", "RGB")


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_keep_errors_short(workers):
    """A broken file in a worker process gives an error of one line, not the worker's traceback."""
    loaders = [
        build_detection_train_loader(images(2), mapper=Reads(), total_batch_size=2, num_workers=workers),
        build_detection_test_loader(images(2), mapper=Reads(), num_workers=workers),
    ]
    for loader in loaders:
        with pytest.raises(FileNotFoundError) as caught:
            next(iter(loader))
        assert str(caught.value) == "no such image file: no/such.jpg"
