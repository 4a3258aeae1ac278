"""Read images, and convert annotations to `Instances`."""

from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.file_io import PathManager
from fvcore.transforms.transform import Transform
from PIL import Image, ImageOps
from torch import Tensor

__all__ = [
    "annotations_to_instances",
    "check_image_size",
    "convert_image_to_rgb",
    "filter_empty_instances",
    "read_image",
    "transform_instance_annotations",
]

# PIL's mode for each format.
PIL_MODES = {"RGB": "RGB", "BGR": "RGB", "L": "L"}


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image as a viewer shows it, with the rotation of its EXIF data.

    Grey, palette and CMYK files are converted. Transparent pixels become white; a real detectron2 uses the colour below
    them. White is 65535 for 16-bit integers and 1 for floats; a real detectron2 clips both at 255.

    Args:
        file_name: path of the file.
        format: "RGB" or "BGR" for shape (H, W, 3), "L" for (H, W, 1), all uint8; None keeps the file's format.

    Raises:
        OSError: the file does not exist (FileNotFoundError), is not an image, or is truncated; or its values are
            outside these ranges, or below 4096 of 65535 (12-bit values). The message names the file.
        ValueError: the format is unknown.
    """
    if format is not None and format not in PIL_MODES:
        raise ValueError(f"image format {format!r}: choose one of {', '.join(PIL_MODES)}")
    try:
        with PathManager.open(file_name, "rb") as file:
            image = Image.open(file)
            stored_wide = any(";16" in str(part) for part in image.tile)  # Pillow keeps only high bytes
            image.load()
        image = ImageOps.exif_transpose(image)
        if format is not None:
            image = _shown(image, stored_wide)
    except FileNotFoundError as err:
        raise FileNotFoundError(f"no such image file: {file_name}") from err
    # Broken PNGs make PIL raise SyntaxError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        reason = "not an image" if isinstance(err, Image.UnidentifiedImageError) else err
        raise OSError(f"cannot read image file {file_name}: {reason}") from err

    pixels = np.array(image if format is None else image.convert(PIL_MODES[format]))
    if format == "L":
        return pixels[..., None]
    return np.ascontiguousarray(pixels[..., ::-1]) if format == "BGR" else pixels


def _shown(image: Image.Image, stored_wide: bool) -> Image.Image:
    """Convert an image to 8 bits per channel, without transparency."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _narrowed(image)
    elif stored_wide and image.mode in ("RGB", "RGBA", "LA"):
        colors = image.getextrema()[: 1 if image.mode == "LA" else 3]
        _refuse_dark(256 * max(high for _, high in colors))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(layer, mask=layer)
    return image


def _narrowed(image: Image.Image) -> Image.Image:
    """Convert a grey image of floats or 16-bit integers to bytes."""
    white, tolerance = (1, 1e-3) if image.mode == "F" else (0xFFFF, 0)
    values = np.asarray(image).astype(float)
    lowest, highest = values.min(), values.max()
    if not (lowest >= -tolerance and highest <= white + tolerance):
        raise ValueError(f"its values go from {lowest:g} to {highest:g}, not from 0 to {white}: scale them")
    if white > 1:
        _refuse_dark(highest)
    scaled = np.rint(values.clip(0, 1) * 255) if white == 1 else values // 256
    if (hidden := image.info.get("transparency")) is not None:
        scaled[values == hidden] = 255
    return Image.fromarray(scaled.astype(np.uint8))


def _refuse_dark(brightest: float) -> None:
    if 0 < brightest < 4096:
        raise ValueError(f"it has more than 8 bits and its values end at {brightest:g} of 65535: scale them")


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Compare the size of the image (H, W, ...) with `height` and `width` of its dict; add them if missing.

    Raises:
        ValueError: they differ, so boxes would be wrong.
    """
    height, width = image.shape[:2]
    expected = dataset_dict.setdefault("width", width), dataset_dict.setdefault("height", height)
    if expected != (width, height):
        raise ValueError(
            f"image {dataset_dict.get('file_name', '')} is {width}x{height} pixels (EXIF rotation applied), "
            f"but its annotation says {expected[0]}x{expected[1]}"
        )


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: Transform,
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: np.ndarray | None = None,
) -> dict[str, Any]:
    """Apply a geometric transform to the box of an annotation in place, and return the annotation.

    Args:
        annotation: has `bbox` and `bbox_mode`. The result is XYXY_ABS, clipped to the image. Segmentations and
            keypoints are removed.
        transforms: the transform of the image.
        image_size: (height, width) after the transform.
        keypoint_hflip_indices: unused.
    """
    box = BoxMode.convert(np.asarray(annotation["bbox"], dtype=float), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    height, width = image_size
    moved = transforms.apply_box(box[None])[0].clip(0, [width, height, width, height])
    annotation.update(bbox=moved, bbox_mode=BoxMode.XYXY_ABS)
    for key in ("segmentation", "keypoints"):
        annotation.pop(key, None)
    return annotation


def annotations_to_instances(
    annos: list[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Convert an image's annotations to Instances.

    Args:
        annos: dicts with `bbox`, `bbox_mode` and `category_id`.
        image_size: (height, width) in pixels that the boxes refer to.
        mask_format: unused.

    Returns:
        Instances with `gt_boxes` (Boxes, pixels) and `gt_classes` (N,) int64.
    """
    boxes = [BoxMode.convert(list(anno["bbox"]), anno["bbox_mode"], BoxMode.XYXY_ABS) for anno in annos]
    classes = [anno["category_id"] for anno in annos]
    return Instances(image_size, gt_boxes=Boxes(boxes), gt_classes=torch.tensor(classes, dtype=torch.int64))


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, Tensor]:
    """Keep the instances whose `gt_boxes` are wider and higher than `box_threshold` pixels.

    Args:
        by_mask: unused.
        return_mask: also return the mask (N,) bool of the kept instances.
    """
    if by_box:
        keep = instances.gt_boxes.nonempty(threshold=box_threshold)
    else:
        keep = torch.ones(len(instances), dtype=torch.bool)
    return (instances[keep], keep) if return_mask else instances[keep]


def convert_image_to_rgb(image: np.ndarray | Tensor, format: str) -> np.ndarray:
    """Convert an image (H, W, C) in a format of `read_image`, values in [0, 255], to RGB (H, W, 3) uint8."""
    if isinstance(image, Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        image = image[..., ::-1]
    elif format == "L":
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=-1)
    return np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
