"""DETR's data augmentation (https://arxiv.org/abs/2005.12872, appendix A.4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances

__all__ = ["DetrDatasetMapper"]


class DetrDatasetMapper:
    """Read the image of a dataset dict, augment it, and convert it to tensors.

    Args:
        augmentation: augmentations in their order.
        augmentation_with_crop: replaces `augmentation` with probability 1/2 in training; None: never.
        is_train: whether to return `instances`, and to crop.
        mask_on: only False is supported; masks need a real detrex.
        img_format: channel order of the model's input, "RGB" or "BGR".
    """

    def __init__(
        self,
        augmentation: Sequence[T.Augmentation | T.Transform],
        augmentation_with_crop: Sequence[T.Augmentation | T.Transform] | None,
        is_train: bool = True,
        mask_on: bool = False,
        img_format: str = "RGB",
    ):
        if mask_on:
            raise ValueError("mask_on=True needs a real detrex: set mask_on=False")
        self.augmentation = T.AugmentationList(augmentation)
        self.augmentation_with_crop = None
        if is_train and augmentation_with_crop is not None:
            self.augmentation_with_crop = T.AugmentationList(augmentation_with_crop)
        self.is_train = is_train
        self.img_format = img_format

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of an image's dict with these entries instead of `annotations`:

        * `image`: (3, H, W) uint8, augmented;
        * in training, `instances`: Instances with `gt_boxes` (pixels of the augmented image) and `gt_classes`, without
          crowds and without objects outside the augmented image.

        `height` and `width` are those of the file. A dict without `annotations` gets no `instances`.

        Raises:
            OSError: the image file is missing or broken.
            ValueError: the size of the image differs from the annotated one.
        """
        example = dict(dataset_dict)
        annotations = [obj for obj in example.pop("annotations", ()) if not obj.get("iscrowd", 0)]
        image = utils.read_image(example["file_name"], format=self.img_format)
        utils.check_image_size(example, image)

        boxes = [BoxMode.convert(list(obj["bbox"]), obj["bbox_mode"], BoxMode.XYXY_ABS) for obj in annotations]
        augmented = T.AugInput(image, boxes=np.array(boxes, dtype=float).reshape(-1, 4))
        self._draw_augmentation()(augmented)
        example["image"] = torch.from_numpy(np.array(augmented.image.transpose(2, 0, 1), order="C"))

        if self.is_train and "annotations" in dataset_dict:
            classes = torch.tensor([obj["category_id"] for obj in annotations], dtype=torch.int64)
            instances = Instances(augmented.image.shape[:2], gt_boxes=Boxes(augmented.boxes), gt_classes=classes)
            instances.gt_boxes.clip(instances.image_size)
            example["instances"] = utils.filter_empty_instances(instances)
        return example

    def _draw_augmentation(self) -> T.AugmentationList:
        if self.augmentation_with_crop is not None and np.random.random_sample() < 0.5:
            return self.augmentation_with_crop
        return self.augmentation
