"""Faster R-CNN (arXiv 1506.01497) on a pyramid (FPN, arXiv 1612.03144) as an auxiliary head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import (
    BACKGROUND,
    IGNORED,
    apply_deltas,
    assign_by_iou,
    box_deltas,
    make_anchors,
    nms,
    pyramid_roi_align,
    sample,
)
from .base import AuxiliaryHead, Candidates, PaddedGroundTruth, Pyramid, as_rows, clip, giou, inside_image


class ProposalNetwork(nn.Module):
    """The first stage (RPN): where objects are, whatever their class.

    Args:
        embed_dim: channels of the pyramid.
        anchor_scale: side of the smallest square anchor, in strides.
        scales_per_octave: sizes of anchors between this one and twice as large.
        anchor_ratios: height over width.
        positive_iou, negative_iou: see `ops.assign_by_iou`.
        num_samples: anchors of an image that the losses are of, half of them positive if there are as many.
        class_weight, box_weight: of the losses.
        num_before, num_after: proposals of a level with the highest scores, and of an image after suppression.
        nms_iou: of the suppression, level by level.
    """

    def __init__(
        self,
        embed_dim: int,
        anchor_scale: float = 4.0,
        scales_per_octave: int = 3,
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        positive_iou: float = 0.7,
        negative_iou: float = 0.3,
        num_samples: int = 256,
        class_weight: float = 1.0,
        box_weight: float = 1.0,
        num_before: int = 4000,
        num_after: int = 1000,
        nms_iou: float = 0.7,
    ):
        super().__init__()
        self.scales = [anchor_scale * 2 ** (i / scales_per_octave) for i in range(scales_per_octave)]
        self.ratios = list(anchor_ratios)
        self.positive_iou, self.negative_iou, self.num_samples = positive_iou, negative_iou, num_samples
        self.class_weight, self.box_weight = class_weight, box_weight
        self.num_before, self.num_after, self.nms_iou = num_before, num_after, nms_iou
        anchors = len(self.scales) * len(self.ratios)
        self.conv = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)
        self.class_pred = nn.Conv2d(embed_dim, anchors, 1)
        self.box_pred = nn.Conv2d(embed_dim, 4 * anchors, 1)
        for layer in (self.conv, self.class_pred, self.box_pred):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Pyramid, objects: PaddedGroundTruth) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Losses `rpn_class` and `rpn_bbox`; proposals (B, P, 4), and which of them are valid (B, P) bool."""
        hidden = [F.relu(self.conv(level)) for level in pyramid.maps]
        logits = as_rows([self.class_pred(x) for x in hidden], 1).squeeze(-1)
        deltas = as_rows([self.box_pred(x) for x in hidden], 4)
        levels = make_anchors(pyramid.sizes, pyramid.strides, self.scales, self.ratios, logits.device)
        anchors = torch.cat(levels)
        usable = inside_image(anchors, pyramid.extent)
        # The best anchor of an object is positive from `negative_iou` on.
        assigned = assign_by_iou(
            anchors, objects.boxes, objects.present, usable, self.positive_iou, self.negative_iou, self.negative_iou
        )
        sampled = sample(assigned, self.num_samples, self.num_samples // 2)
        losses = self.losses(logits, deltas, anchors, assigned, sampled, objects)
        scores = logits.detach().masked_fill(~usable, -torch.inf)
        return losses, *self.proposals(scores, deltas.detach(), levels, pyramid.extent)

    def losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        assigned: Tensor,
        sampled: Tensor,
        objects: PaddedGroundTruth,
    ) -> dict[str, Tensor]:
        """Of logits (B, A) and deltas (B, A, 4), over the `sampled` (B, S) anchors; divided by their number."""
        valid = sampled >= 0
        sampled = sampled.clamp(min=0)
        number = valid.sum().clamp(min=1)
        index = assigned.gather(1, sampled)
        positive = valid & (index >= 0)
        bce = F.binary_cross_entropy_with_logits(logits.gather(1, sampled), positive.float(), reduction="none")

        image, place = positive.nonzero(as_tuple=True)
        anchor = sampled[image, place]
        target = box_deltas(anchors[anchor], objects.boxes[image, index[image, place]])
        distance = (deltas[image, anchor] - target).abs().sum()
        return {
            "rpn_class": self.class_weight * (bce * valid).sum() / number,
            "rpn_bbox": self.box_weight * distance / number,
        }

    @torch.no_grad()
    def proposals(
        self, scores: Tensor, deltas: Tensor, levels: Sequence[Tensor], extent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The best boxes of each image: (B, P, 4), and (B, P) bool, which of them are valid.

        Args:
            scores: (B, A), -inf where there is no image.
            deltas: (B, A, 4), of the anchors of all levels.
            extent: (B, 2) of the images.
        """
        first, chosen, group = 0, [], []
        for number, count in enumerate(map(len, levels)):
            best = scores[:, first : first + count].topk(min(self.num_before, count)).indices
            chosen.append(best + first)
            group.append(torch.full_like(best[0], number))
            first += count
        chosen, group = torch.cat(chosen, dim=1), torch.cat(group)
        moved = apply_deltas(torch.cat(list(levels))[chosen], deltas.gather(1, chosen[..., None].expand(-1, -1, 4)))
        boxes, scores = clip(moved, extent), scores.gather(1, chosen)
        sound = (boxes[..., 2:] > boxes[..., :2]).all(-1) & scores.isfinite()

        result = boxes.new_zeros(len(boxes), self.num_after, 4)
        valid = sound.new_zeros(result.shape[:2])
        # Image by image, as each has another number of boxes, and suppression is not linear in it.
        for i, keep in enumerate(sound):
            place = keep.nonzero().squeeze(1)
            kept = place[nms(boxes[i, place], scores[i, place], self.nms_iou, group[place], self.num_after)]
            result[i, : len(kept)] = boxes[i, kept]
            valid[i, : len(kept)] = True
        return result, valid


class FasterRCNNHead(AuxiliaryHead):
    """Two stages: proposals, and then class and box of a sample of them, from their features by RoIAlign.

    The second stage does not read the pyramid's last level, which is for large anchors alone.

    Args:
        embed_dim: channels of the pyramid.
        num_classes: of objects.
        proposals: the first stage.
        pooled_size: bins of a side in RoIAlign.
        finest: see `ops.pyramid_roi_align`. 14 cells: boxes of 56 to 112 pixels on stride 4.
        hidden_dim: of the two layers shared by class and box.
        positive_iou: from here on a proposal has an object.
        num_samples: proposals of an image that the losses are of.
        positive_share: of them, at most.
        class_weight, giou_weight: of the losses.
        delta_weights: see `ops.box_deltas`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        proposals: ProposalNetwork,
        pooled_size: int = 7,
        finest: float = 14.0,
        hidden_dim: int = 1024,
        positive_iou: float = 0.5,
        num_samples: int = 512,
        positive_share: float = 0.25,
        class_weight: float = 1.0,
        giou_weight: float = 10.0,
        delta_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    ):
        super().__init__()
        self.num_classes, self.pooled_size, self.finest = num_classes, pooled_size, finest
        self.positive_iou, self.num_samples, self.positive_share = positive_iou, num_samples, positive_share
        self.class_weight, self.giou_weight, self.delta_weights = class_weight, giou_weight, tuple(delta_weights)
        self.proposals = proposals
        self.shared = nn.Sequential(
            nn.Flatten(),
            nn.Linear(embed_dim * pooled_size**2, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(inplace=True),
        )
        self.class_pred = nn.Linear(hidden_dim, num_classes + 1)
        self.box_pred = nn.Linear(hidden_dim, 4 * num_classes)
        for layer, init in (
            (self.shared[1], nn.init.xavier_uniform_),
            (self.shared[3], nn.init.xavier_uniform_),
            (self.class_pred, lambda weight: nn.init.normal_(weight, std=0.01)),
            (self.box_pred, lambda weight: nn.init.normal_(weight, std=0.001)),
        ):
            init(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Pyramid, objects: PaddedGroundTruth) -> tuple[dict[str, Tensor], Candidates]:
        """Losses `rpn_class`, `rpn_bbox`, `class` (cross-entropy) and `giou`; candidates are the sampled proposals."""
        losses, proposals, valid = self.proposals(pyramid, objects)
        boxes, assigned = self.sample(proposals, valid, objects)
        image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
        pooled = pyramid_roi_align(
            pyramid.maps[:-1], pyramid.strides[:-1], boxes.flatten(0, 1), image, self.pooled_size, self.finest
        )
        hidden = self.shared(pooled).unflatten(0, assigned.shape)
        logits, deltas = self.class_pred(hidden).float(), self.box_pred(hidden).float()
        losses |= self.losses(logits, deltas.unflatten(-1, (-1, 4)), boxes, assigned, objects)
        return losses, Candidates(boxes, assigned)

    def sample(self, proposals: Tensor, valid: Tensor, objects: PaddedGroundTruth) -> tuple[Tensor, Tensor]:
        """Boxes (B, S, 4) of proposals (B, P, 4) and objects, and what they are assigned (B, S)."""
        boxes = torch.cat([objects.boxes, proposals], dim=1)
        valid = torch.cat([objects.present, valid], dim=1)
        assigned = assign_by_iou(
            boxes, objects.boxes, objects.present, valid, self.positive_iou, self.positive_iou
        )
        sampled = sample(assigned, self.num_samples, int(self.num_samples * self.positive_share))
        place = sampled.clamp(min=0)
        return (
            boxes.gather(1, place[..., None].expand(-1, -1, 4)),
            assigned.gather(1, place).masked_fill(sampled < 0, IGNORED),
        )

    def losses(
        self, logits: Tensor, deltas: Tensor, boxes: Tensor, assigned: Tensor, objects: PaddedGroundTruth
    ) -> dict[str, Tensor]:
        """Of logits (B, S, C + 1), background last, and deltas (B, S, C, 4) of the sampled boxes (B, S, 4); divided by
        the number of samples."""
        valid = assigned != IGNORED
        number = valid.sum().clamp(min=1)
        labels = objects.labels.gather(1, assigned.clamp(min=0))
        labels = labels.masked_fill(assigned == BACKGROUND, self.num_classes)
        entropy = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")

        image, place = (assigned >= 0).nonzero(as_tuple=True)
        found = apply_deltas(boxes[image, place], deltas[image, place, labels[image, place]], self.delta_weights)
        target = objects.boxes[image, assigned[image, place]]
        return {
            "class": self.class_weight * (entropy * valid).sum() / number,
            "giou": self.giou_weight * (1 - giou(found, target)).sum() / number,
        }
