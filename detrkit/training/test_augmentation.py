"""Test-time augmentation: detect at several sizes and in the mirrored image, and merge the detections."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from torch import nn

from detrkit.config.exported import InputSize, input_size
from detrkit.config.test_augmentation import TTAOptions
from detrkit.runtime.box_fusion import weighted_boxes_fusion
from detrkit.runtime.soft_nms import soft_nms


class DetrWithTTA(nn.Module):
    """A DETR detector with test-time augmentation, as detectron2's `GeneralizedRCNNWithTTA` is for R-CNN.

    Args:
        model: a detector in evaluation mode.
        options: the passes, and how they are merged.
        size: that of a pass without augmentation.
    """

    def __init__(self, model: nn.Module, options: TTAOptions, size: InputSize):
        super().__init__()
        self.model, self.options = model, options
        self.training = model.training
        self.mappers = [
            DatasetMapperTTA([short], options.max_size or round(size.max_size * short / size.short_edge), options.flip)
            for short in options.min_sizes or (size.short_edge,)
        ]

    def forward(self, batched_inputs: Sequence[Mapping]) -> list[dict[str, Instances]]:
        """Detect objects.

        Args:
            batched_inputs: dicts with `image` (3, H, W) uint8, before it is resized, `height` and `width`.

        Returns:
            For each image `instances` on the CPU, in pixels of `height` and `width`, best first, as many as one pass
            gives at most.
        """
        return [{"instances": self.detect(inputs)} for inputs in batched_inputs]

    def detect(self, inputs: Mapping) -> Instances:
        """Detect objects in one image: a call of the model for each size, with the image and its mirror image."""
        boxes, scores, classes = [], [], []
        for mapper in self.mappers:
            views = mapper(dict(inputs))
            undo = [view.pop("transforms").inverse() for view in views]
            for view in views:
                view["height"], view["width"] = view["image"].shape[-2:]
            for output, transform in zip(self.model(views), undo, strict=True):
                found = output["instances"].to("cpu")
                boxes.append(torch.as_tensor(transform.apply_box(found.pred_boxes.tensor.float().numpy())).float())
                scores.append(found.scores.float())
                classes.append(found.pred_classes)
        most = max(map(len, scores))
        merged = self.merge(torch.cat(boxes), torch.cat(scores), torch.cat(classes), len(scores))
        boxes, scores, classes = (values[:most] for values in merged)
        size = inputs["height"], inputs["width"]
        return Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)

    def merge(
        self, boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, passes: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Merge boxes (N, 4), scores (N,) and classes (N,) of all passes, best first."""
        if self.options.merge == "wbf":
            return weighted_boxes_fusion(boxes, scores, classes, passes, self.options.iou)
        order, lowered = soft_nms(boxes.numpy(), scores.numpy(), classes.numpy(), self.options.iou)
        kept = torch.from_numpy(order)
        return boxes[kept], torch.from_numpy(lowered), classes[kept]


def with_tta(cfg: DictConfig, model: nn.Module, options: TTAOptions | None) -> nn.Module:
    """Return a model with the test-time augmentation of a config; the model itself without options.

    Raises:
        ValueError: the config does not say the size of one pass; see `input_size`.
    """
    return model if options is None else DetrWithTTA(model, options, input_size(cfg))


def with_original_images(cfg: DictConfig) -> DictConfig:
    """Return a copy of a config whose test images are not resized, as `DetrWithTTA` needs them.

    Raises:
        ValueError: the config does not say the size of one pass; see `input_size`.
    """
    input_size(cfg)
    changed = copy.deepcopy(cfg)
    changed.dataloader.test.mapper.augmentation = []
    return changed
