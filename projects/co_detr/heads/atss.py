"""ATSS (arXiv 1912.02424) as an auxiliary head."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align_detr.modeling.criterion import average_over_processes
from align_detr.modeling.losses import FOCAL_ALPHA, focal_loss, split_entries

from ..ops import apply_deltas, assign_by_statistics, make_anchors
from .base import (
    NEVER,
    AuxiliaryHead,
    Candidates,
    PaddedGroundTruth,
    Pyramid,
    as_rows,
    conv_norm_relu,
    gather_rows,
    giou,
    inside_image,
)

FOCAL_GAMMA = 2.0


class ATSSHead(AuxiliaryHead):
    """ATSS with one square anchor per cell; predicts class logits, box deltas and centerness of each anchor.

    Args:
        embed_dim: channels of the pyramid, a multiple of 32.
        num_classes: number of object classes.
        strides: of the pyramid's levels; each level has a learned factor for its box deltas.
        anchor_scale: side of an anchor, in strides.
        num_candidates: candidate anchors per level and ground truth.
        class_weight, giou_weight, centerness_weight: loss weights.
        delta_weights: see `ops.box_deltas`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        strides: Sequence[int],
        anchor_scale: float = 8.0,
        num_candidates: int = 9,
        class_weight: float = 1.0,
        giou_weight: float = 2.0,
        centerness_weight: float = 1.0,
        delta_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    ):
        super().__init__()
        self.num_classes, self.anchor_scale, self.num_candidates = num_classes, anchor_scale, num_candidates
        self.class_weight, self.giou_weight, self.centerness_weight = class_weight, giou_weight, centerness_weight
        self.delta_weights = tuple(delta_weights)
        self.class_branch, self.box_branch = (conv_norm_relu(embed_dim) for _ in range(2))
        self.class_pred = nn.Conv2d(embed_dim, num_classes, 3, padding=1)
        self.box_pred = nn.Conv2d(embed_dim, 4, 3, padding=1)
        self.centerness_pred = nn.Conv2d(embed_dim, 1, 3, padding=1)
        self.level_scales = nn.Parameter(torch.ones(len(strides)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.class_pred.bias, -math.log(99))  # an initial score of 0.01

    def forward(self, pyramid: Pyramid, objects: PaddedGroundTruth) -> tuple[dict[str, Tensor], Candidates]:
        """Return the losses `class` (focal), `giou` and `centerness`.

        The candidates are the anchors, with the features of their cells.
        """
        logits, deltas, centerness = self.predict(pyramid.maps)
        levels = make_anchors(pyramid.sizes, pyramid.strides, [self.anchor_scale], [1.0], logits.device)
        anchors = torch.cat(levels)
        usable = inside_image(anchors, pyramid.extent)
        assigned = assign_by_statistics(levels, objects.boxes, objects.present, usable, self.num_candidates)
        losses = self.losses(logits, deltas, centerness, anchors, assigned, usable, objects)

        def features(index: Tensor) -> Tensor:  # there is one anchor per cell
            return gather_rows(as_rows(pyramid.maps, pyramid.maps[0].shape[1]), index)

        return losses, Candidates(anchors, assigned, features)

    def predict(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Predict logits (B, A, C), deltas (B, A, 4) and centerness logits (B, A) for the anchors of all levels."""
        classes, boxes, centers = [], [], []
        for level, scale in zip(maps, self.level_scales, strict=True):
            classes.append(self.class_pred(self.class_branch(level)))
            box_features = self.box_branch(level)
            boxes.append(self.box_pred(box_features) * scale)
            centers.append(self.centerness_pred(box_features))
        return as_rows(classes, self.num_classes), as_rows(boxes, 4), as_rows(centers, 1).squeeze(-1)

    def losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        centerness: Tensor,
        anchors: Tensor,
        assigned: Tensor,
        usable: Tensor,
        objects: PaddedGroundTruth,
    ) -> dict[str, Tensor]:
        """Losses of the predictions of `predict` for anchors (A, 4), with assigned ground truths (B, A).

        Sums over the anchors of all images. Class and centerness losses are divided by the number of positives, the box
        loss by the sum of their centerness: means over the processes, at least 1.
        """
        image, anchor = (assigned >= 0).nonzero(as_tuple=True)
        index = assigned[image, anchor]
        labels, targets = objects.labels[image, index], objects.boxes[image, index]
        number = average_over_processes(len(image), logits.device)

        logits = logits.masked_fill(~usable[..., None], NEVER)
        layer = torch.zeros_like(image)
        unmatched, matched = split_entries(logits[None], (layer, image, anchor, labels), FOCAL_GAMMA)
        hits = focal_loss(matched, torch.ones_like(matched), FOCAL_GAMMA)

        chosen = anchors[anchor]
        target_centerness = centerness_of((chosen[:, :2] + chosen[:, 2:]) / 2, targets)
        boxes = apply_deltas(chosen, deltas[image, anchor], self.delta_weights)
        total_centerness = average_over_processes(target_centerness.sum(), logits.device)
        centers = F.binary_cross_entropy_with_logits(centerness[image, anchor], target_centerness, reduction="sum")
        return {
            "class": self.class_weight * ((1 - FOCAL_ALPHA) * unmatched.sum() + hits.sum()) / number,
            "giou": self.giou_weight * (target_centerness * (1 - giou(boxes, targets))).sum() / total_centerness,
            "centerness": self.centerness_weight * centers / number,
        }


def centerness_of(points: Tensor, boxes: Tensor) -> Tensor:
    """Centerness (P,) of points (P, 2) in boxes (P, 4): 1 at the centre, 0 at the border (FCOS, arXiv 1904.01355)."""
    before, after = points - boxes[:, :2], boxes[:, 2:] - points
    ratio = torch.minimum(before, after) / torch.maximum(before, after)
    return ratio.prod(-1).clamp(min=0).sqrt()
