"""Interface of auxiliary heads: inputs, outputs, and functions that the heads share."""

from collections.abc import Callable, Mapping, Sequence
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
        extent: (B, 2) width and height of each image in pixels; the rest of a map is padding.
    """

    maps: Sequence[Tensor]
    strides: Sequence[int]
    extent: Tensor

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(rows, columns) of each level."""
        return [tuple(level.shape[-2:]) for level in self.maps]


class PaddedGroundTruth(NamedTuple):
    """The ground truths of B images, padded to the largest number G (at least 1).

    Attributes:
        boxes: (B, G, 4) float32, xyxy in pixels.
        labels: (B, G) int64.
        present: (B, G) bool, false in padding.
    """

    boxes: Tensor
    labels: Tensor
    present: Tensor

    @classmethod
    def from_targets(cls, targets: Sequence[Mapping[str, Tensor]], extent: Tensor) -> "PaddedGroundTruth":
        """Pad detrex's targets: per image `labels` (G,) and `boxes` (G, 4), cxcywh in [0, 1] of `extent` (B, 2)."""

        def pad(name: str) -> Tensor:
            return pad_sequence([target[name] for target in targets], batch_first=True)

        labels, boxes = pad("labels"), box_cxcywh_to_xyxy(pad("boxes").float()) * extent.repeat(1, 2)[:, None]
        count = torch.tensor([len(target["labels"]) for target in targets]).to(labels.device, non_blocking=True)
        if labels.shape[1] == 0:
            labels, boxes = labels.new_zeros(len(targets), 1), boxes.new_zeros(len(targets), 1, 4)
        present = torch.arange(labels.shape[1], device=labels.device) < count[:, None]
        return cls(boxes, labels, present)


class Candidates(NamedTuple):
    """The training samples of a head; positive queries are sampled from them.

    Attributes:
        boxes: (B, A, 4), xyxy in pixels; or (A, 4) if all images have the same boxes.
        assigned: (B, A) int64, index of the assigned ground truth, `ops.BACKGROUND` or `ops.IGNORED`.
        features: function of positions (B, Q) among the A boxes; returns their features (B, Q, D), with gradients. A
            function, because only some detectors need them.
    """

    boxes: Tensor
    assigned: Tensor
    features: Callable[[Tensor], Tensor] | None = None


class AuxiliaryHead(nn.Module):
    """Base class of heads on the encoder's features, used in training only.

    Every parameter must get a gradient in every step, also without objects or positives: distributed training waits for
    each of them. A new head is a module of its own here and a line under `collaboration.heads` in a config.
    """

    def forward(self, pyramid: Pyramid, objects: PaddedGroundTruth) -> tuple[dict[str, Tensor], Candidates]:
        """Return the losses by name, float32 and weighted, and the candidates."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(pyramid, objects)")


def conv_norm_relu(channels: int) -> nn.Sequential:
    """Return a 3 x 3 convolution, a group norm (32 groups) and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(32, channels), nn.ReLU(inplace=True)
    )


def as_rows(levels: Sequence[Tensor], channels: int) -> Tensor:
    """Reshape predictions (B, A · channels, H_l, W_l) of all levels to float32 rows (B, Σ H_l · W_l · A, channels).

    The order is that of `ops.make_anchors`.
    """
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, channels) for x in levels], dim=1).float()


def gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Select rows (B, A, D) at positions (B, Q): return (B, Q, D)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


def inside_image(anchors: Tensor, extent: Tensor) -> Tensor:
    """Return (B, A) bool: whether the centre of each anchor (A, 4) is inside the image of size `extent` (B, 2)."""
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    return (center < extent[:, None]).all(-1)


def clip(boxes: Tensor, extent: Tensor) -> Tensor:
    """Clip boxes (B, A, 4) to the images of size `extent` (B, 2)."""
    return torch.minimum(boxes.clamp(min=0), extent.repeat(1, 2)[:, None])


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU (P,) of paired boxes (P, 4)."""
    return iou_and_giou(box_xyxy_to_cxcywh(boxes), box_xyxy_to_cxcywh(others))[1]
