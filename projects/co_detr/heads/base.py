"""What an auxiliary head gets and gives; another kind is one more file beside this one, and its line in a config."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from detrex.layers import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from align_detr.modeling.losses import iou_and_giou

NEVER = -1e4  # a logit that leaves neither a loss nor a gradient


class Pyramid(NamedTuple):
    """The features of B images in L levels, finest first.

    Attributes:
        maps: (B, D, H_l, W_l).
        strides: pixels between the cells of each level.
        extent: (B, 2) width and height of each image in pixels; what is beyond them in a map is padding.
    """

    maps: Sequence[Tensor]
    strides: Sequence[int]
    extent: Tensor

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(rows, columns) of each level."""
        return [tuple(level.shape[-2:]) for level in self.maps]


class PaddedGroundTruth(NamedTuple):
    """The ground truths of B images, padded to equal numbers G, at least 1.

    Attributes:
        boxes: (B, G, 4) float32, xyxy in pixels.
        labels: (B, G) int64.
        present: (B, G) bool; the others are padding.
    """

    boxes: Tensor
    labels: Tensor
    present: Tensor

    @classmethod
    def from_targets(cls, targets: Sequence[Mapping[str, Tensor]], extent: Tensor) -> "PaddedGroundTruth":
        """From detrex's targets: per image `labels` (G,) and `boxes` (G, 4), cxcywh in [0, 1] of `extent` (B, 2)."""

        def pad(name: str) -> Tensor:
            return pad_sequence([target[name] for target in targets], batch_first=True)

        labels, boxes = pad("labels"), box_cxcywh_to_xyxy(pad("boxes").float()) * extent.repeat(1, 2)[:, None]
        count = torch.tensor([len(target["labels"]) for target in targets]).to(labels.device, non_blocking=True)
        if labels.shape[1] == 0:
            labels, boxes = labels.new_zeros(len(targets), 1), boxes.new_zeros(len(targets), 1, 4)
        present = torch.arange(labels.shape[1], device=labels.device) < count[:, None]
        return cls(boxes, labels, present)


class Candidates(NamedTuple):
    """The boxes that a head was trained on, of which the positive queries are made.

    Attributes:
        boxes: (B, A, 4), xyxy in pixels; or (A, 4), if they are the same in all images.
        assigned: (B, A) int64, the object that each was assigned, `ops.BACKGROUND`, or `ops.IGNORED` for what is not to
            be used.
    """

    boxes: Tensor
    assigned: Tensor


class AuxiliaryHead(nn.Module):
    """A head on the encoder's features that is there in training alone.

    Subclasses read `pyramid.maps[first_level:]` as they like. Every parameter has to take part in every step, also in
    one without objects or without positives, or processes wait for each other.
    """

    def forward(self, pyramid: Pyramid, objects: PaddedGroundTruth) -> tuple[dict[str, Tensor], Candidates]:
        """Losses by name, float32 with the weights among them applied; and where they came from."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its losses are")


def as_rows(levels: Sequence[Tensor], channels: int) -> Tensor:
    """Predictions (B, A · channels, H_l, W_l) of all levels as rows (B, Σ H_l · W_l · A, channels) in the order of
    `ops.make_anchors`, in float32."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, channels) for x in levels], dim=1).float()


def inside_image(anchors: Tensor, extent: Tensor) -> Tensor:
    """(B, A) bool, whether the centre of an anchor (A, 4) is within each image, whose `extent` is (B, 2)."""
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    return (center < extent[:, None]).all(-1)


def clip(boxes: Tensor, extent: Tensor) -> Tensor:
    """Boxes (B, A, 4) cut off at the borders of their images, whose `extent` is (B, 2)."""
    return torch.minimum(boxes.clamp(min=0), extent.repeat(1, 2)[:, None])


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """(P,) generalised IoU of boxes (P, 4) in pairs."""
    return iou_and_giou(box_xyxy_to_cxcywh(boxes), box_xyxy_to_cxcywh(others))[1]
