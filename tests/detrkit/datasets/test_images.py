"""Image files of every kind look the same to training, evaluation, `Detector` and the demo."""

import json
import struct
import zlib

import numpy as np
import pytest
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.detection_utils import read_image as engine_read_image
from detrex.data import DetrDatasetMapper
from omegaconf import OmegaConf
from PIL import Image

from detrkit.datasets import register_coco
from detrkit.datasets.images import UnknownRange, image_suffixes, read_image
from detrkit.datasets.mapper import RgbImageMapper, with_rgb_images
from detrkit.inference.pictures import read_picture
from detrkit.training.builders import build_loader

WIDTH, HEIGHT = 12, 8
RAMP = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, 0)
CLEAR = np.arange(HEIGHT)[:, None].repeat(WIDTH, 1) >= HEIGHT // 2  # the lower half is transparent


def png_of_16_bits(pixels):
    """A PNG file of (H, W, 3) uint16, which Pillow reads but does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def rgba(hidden):
    """Grey, its lower half transparent with a colour below it."""
    grey = np.where(CLEAR, hidden, RAMP)
    return Image.fromarray(np.stack([grey] * 3 + [np.where(CLEAR, 0, 255)], -1).astype(np.uint8))


def palette():
    image = Image.fromarray(np.where(CLEAR, 255, RAMP // 2).astype(np.uint8)).convert("P")
    image.putpalette([value for index in range(255) for value in [min(2 * index, 255)] * 3] + [0, 0, 0])
    return image


def turned(image):
    exif = Image.Exif()
    exif[0x0112] = 3
    return image.rotate(180), {"exif": exif}


ON_WHITE = np.where(CLEAR, 255, RAMP)
KINDS = {  # file name: (image, options of saving, grey values that are seen)
    "plain.png": (Image.fromarray(RAMP).convert("RGB"), {}, RAMP),
    "rgba.png": (rgba(0), {}, ON_WHITE),
    "hidden.png": (rgba(77), {}, ON_WHITE),
    "la.png": (rgba(0).convert("LA"), {}, ON_WHITE),
    "palette.png": (palette(), {"transparency": 255}, np.where(CLEAR, 255, RAMP // 2 * 2)),
    "palette.gif": (palette(), {"transparency": 255}, np.where(CLEAR, 255, RAMP // 2 * 2)),
    "rgba.tif": (rgba(0), {}, ON_WHITE),
    "rgba.webp": (rgba(0), {"lossless": True}, ON_WHITE),
    "turned.png": (*turned(rgba(0)), ON_WHITE),
    "wide.png": (Image.fromarray(RAMP.astype(np.uint16) * 257), {}, RAMP),
    "wide.tif": (Image.fromarray(RAMP.astype(np.uint16) * 257), {}, RAMP),
    "whole.tif": (Image.fromarray(RAMP.astype(np.int32) * 257), {}, RAMP),
    "float.tif": (Image.fromarray(RAMP.astype(np.float32) / 255), {}, RAMP),
    "black.tif": (Image.fromarray(RAMP.astype(np.float32) * 0), {}, RAMP * 0),
}
REFUSED = {
    "float_255.tif": Image.fromarray(RAMP.astype(np.float32)),
    "float_4095.tif": Image.fromarray(RAMP.astype(np.float32) * 16),
    "nan.tif": Image.fromarray(np.where(CLEAR, np.nan, RAMP / 255).astype(np.float32)),
    "twelve.tif": Image.fromarray(RAMP.astype(np.uint16) * 16),
    "whole_255.tif": Image.fromarray(RAMP.astype(np.int32)),
    "negative.tif": Image.fromarray(RAMP.astype(np.int32) * 257 - 9),
    "large.tif": Image.fromarray(RAMP.astype(np.int32) * 1000),
}


@pytest.fixture
def files(tmp_path):
    for name, (image, options, _) in KINDS.items():
        image.save(tmp_path / name, **options)
    return tmp_path


def dataset(folder, names):
    """Registers images of one object each; returns the nodes of a config for them."""
    size = {"width": WIDTH, "height": HEIGHT}
    content = {
        "images": [{"id": number, "file_name": name, **size} for number, name in enumerate(names, 1)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
            for n, _ in enumerate(names, 1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "images.json").write_text(json.dumps(content))
    register_coco("kinds_of_images", folder / "images.json", folder)
    source = L(get_detection_dataset_dicts)(names="kinds_of_images", filter_empty=False)

    def mapper(is_train):
        return L(DetrDatasetMapper)(augmentation=[], augmentation_with_crop=None, is_train=is_train, mask_on=False)

    cfg = OmegaConf.create({"model": {}, "dataloader": {}}, flags={"allow_objects": True})
    cfg.dataloader.train = L(build_detection_train_loader)(
        dataset=source, mapper=mapper(True), total_batch_size=1, num_workers=0
    )
    cfg.dataloader.test = L(build_detection_test_loader)(dataset=source, mapper=mapper(False), num_workers=0)
    return cfg


def test_all_see_the_same(files):
    """Protects from other pictures in use than in training; transparent pixels are white, wide values scaled."""
    cfg = dataset(files, list(KINDS))
    stream = iter(build_loader(cfg, "train"))
    training = {}
    while len(training) < len(KINDS):
        (example,) = next(stream)
        training[example["file_name"]] = example["image"].numpy().transpose(1, 2, 0)
    evaluation = {e["file_name"]: e["image"].numpy().transpose(1, 2, 0) for (e,) in build_loader(cfg, "test")}
    for name, (_, _, grey) in KINDS.items():
        path = files / name
        used = read_picture(path)
        assert np.abs(used[..., 0].astype(int) - grey).max() <= 1, name
        assert np.array_equal(used, training[str(path)]), name
        assert np.array_equal(used, evaluation[str(path)]), name


def test_pictures_in_memory_are_files(files):
    """Protects `Detector` given a PIL image from another picture than given its file."""
    for name in KINDS:
        with Image.open(files / name) as image:
            assert np.array_equal(read_picture(image), read_picture(files / name)), name


@pytest.mark.engine(reason="detectron2's own reader shows hidden colours and clips values")
def test_the_reader_of_the_engine(files):
    """Protects who calls detectron2's reader: it has the same rule, up to rounding."""
    for name in KINDS:
        difference = engine_read_image(str(files / name), "RGB").astype(int) - read_image(files / name)
        assert np.abs(difference).max() <= 1, name


@pytest.mark.parametrize("name", REFUSED)
def test_values_of_unknown_range(name, tmp_path):
    """Protects from training on black or white images; one line names the file and the remedy, in training and use."""
    REFUSED[name].save(tmp_path / name)
    with pytest.raises(UnknownRange, match="scale"):
        read_picture(tmp_path / name)
    mapper = with_rgb_images(DetrDatasetMapper([], None, is_train=False))
    with pytest.raises(OSError, match=f"cannot read image file {tmp_path / name}: its .*: scale") as error:
        mapper({"file_name": str(tmp_path / name), "image_id": 1})
    assert "\n" not in str(error.value)


def test_images_to_evaluate_on_are_checked_first(tmp_path):
    """Protects from an evaluation that fails after hours of training: such values stop it before the first step."""
    for name, image in REFUSED.items():
        image.save(tmp_path / name)
    cfg = dataset(tmp_path, list(REFUSED))
    with pytest.raises(ValueError, match=f"{len(REFUSED)} of {len(REFUSED)} images of .* cannot be .*: scale"):
        build_loader(cfg, "test")


@pytest.mark.parametrize("bits, is_refused", [(16, False), (12, True)])
def test_wide_colours(bits, is_refused, tmp_path):
    """Protects colours of 16 bits, and from those of 12, which Pillow reads as nearly black."""
    pixels = (RAMP.astype(np.uint16) * 257 >> (16 - bits))[..., None].repeat(3, 2)
    (tmp_path / "x.png").write_bytes(png_of_16_bits(pixels))
    if is_refused:
        with pytest.raises(UnknownRange, match="end at 3840"):
            read_image(tmp_path / "x.png")
    else:
        assert np.array_equal(read_image(tmp_path / "x.png")[..., 0], RAMP)


def test_mapper_keeps_what_it_does(files):
    """Protects names, sizes and errors: a converted image is no other example, and errors name its file."""
    plain, wrapped = (make(DetrDatasetMapper([], None)) for make in (lambda mapper: mapper, with_rgb_images))
    image = {"file_name": str(files / "plain.png"), "width": WIDTH, "height": HEIGHT, "image_id": 1, "annotations": []}
    assert wrapped(image).keys() == plain(image).keys()
    converted = wrapped({**image, "file_name": str(files / "rgba.png")})
    assert converted["file_name"] == str(files / "rgba.png") and converted["image"].shape == (3, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="rgba.png"):
        wrapped({**image, "file_name": str(files / "rgba.png"), "width": WIDTH + 1})
    (files / "broken.png").write_bytes((files / "rgba.png").read_bytes()[:60])
    for name in ("broken.png", "gone.png"):
        with pytest.raises(OSError, match=name):
            wrapped({**image, "file_name": str(files / name)})
    assert isinstance(wrapped, RgbImageMapper) and with_rgb_images(len) is len and with_rgb_images(None) is None


def test_suffixes_are_those_that_can_be_read():
    """Protects images in formats that came later than a list of ours: Pillow's list is the only one."""
    suffixes = image_suffixes()
    assert {".jpg", ".jfif", ".png", ".tif", ".webp"} <= suffixes
    assert not {".pdf", ".txt", ".xml", ".json", ".csv", ".yaml"} & suffixes
