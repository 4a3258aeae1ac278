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
from .base import (
    AuxiliaryHead,
    Candidates,
    PaddedGroundTruth,
    Pyramid,
    as_rows,
    clip,
    conv_norm_relu,
    gather_rows,
    giou,
    inside_image,
)


class ProposalNetwork(nn.Module):
    """Region proposal network (RPN): class-agnostic proposals.

    Args:
        embed_dim: channels of the pyramid.
        anchor_scale: side of the smallest square anchor, in strides.
        scales_per_octave: number of anchor sizes per octave.
        anchor_ratios: height over width.
        positive_iou, negative_iou: see `ops.assign_by_iou`.
        num_samples: anchors sampled per image for the losses, at most half of them positive.
        class_weight, box_weight: loss weights.
        num_before: highest-scoring proposals kept per level before suppression.
        num_after: proposals kept per image after suppression.
        nms_iou: IoU threshold of the suppression, which runs within each level.
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
        """Return the losses `rpn_class` and `rpn_bbox`, proposals (B, P, 4) and their validity (B, P) bool."""
        hidden = [F.relu(self.conv(level)) for level in pyramid.maps]
        logits = as_rows([self.class_pred(x) for x in hidden], 1).squeeze(-1)
        deltas = as_rows([self.box_pred(x) for x in hidden], 4)
        levels = make_anchors(pyramid.sizes, pyramid.strides, self.scales, self.ratios, logits.device)
        anchors = torch.cat(levels)
        usable = inside_image(anchors, pyramid.extent)
        # The best anchor of each object is positive if its IoU is at least `negative_iou`.
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
        """Losses of logits (B, A) and deltas (B, A, 4), averaged over the `sampled` anchors (B, S; -1: padding)."""
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
        """Select the best boxes of each image: return boxes (B, P, 4) and their validity (B, P) bool.

        Args:
            scores: (B, A) of the anchors of all levels, -inf in padding.
            deltas: (B, A, 4).
            extent: (B, 2), width and height of each image in pixels.
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
        usable = (boxes[..., 2:] > boxes[..., :2]).all(-1) & scores.isfinite()

        result = boxes.new_zeros(len(boxes), self.num_after, 4)
        valid = usable.new_zeros(result.shape[:2])
        # Image by image: their numbers of boxes differ, and the cost of suppression grows faster than this number.
        for i, keep in enumerate(usable):
            place = keep.nonzero().squeeze(1)
            kept = place[nms(boxes[i, place], scores[i, place], self.nms_iou, group[place], self.num_after)]
            result[i, : len(kept)] = boxes[i, kept]
            valid[i, : len(kept)] = True
        return result, valid


class FasterRCNNHead(AuxiliaryHead):
    """Two stages: proposals, then class and box of sampled proposals from RoIAlign features.

    The second stage does not use the pyramid's last level, which only serves large anchors.

    Args:
        embed_dim: channels of the pyramid.
        num_classes: number of object classes.
        proposals: the first stage.
        pooled_size: RoIAlign's bins per side.
        finest: see `ops.pyramid_roi_align`. 14 cells: boxes of 56 to 112 pixels on stride 4.
        hidden_dim: width of the layers shared by class and box.
        num_convs: 3 x 3 convolutions with group norms before these layers.
        num_layers: number of these layers.
        class_agnostic: one box per proposal, not one per class.
        positive_iou: smallest IoU of a positive proposal.
        num_samples: proposals sampled per image for the losses.
        positive_share: largest share of positives among the samples.
        class_weight, giou_weight: loss weights.
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
        num_convs: int = 0,
        num_layers: int = 2,
        class_agnostic: bool = False,
    ):
        super().__init__()
        self.num_classes, self.pooled_size, self.finest = num_classes, pooled_size, finest
        self.positive_iou, self.num_samples, self.positive_share = positive_iou, num_samples, positive_share
        self.class_weight, self.giou_weight, self.delta_weights = class_weight, giou_weight, tuple(delta_weights)
        self.proposals = proposals
        self.class_agnostic = class_agnostic
        self.convs = nn.Sequential(*(conv_norm_relu(embed_dim) for _ in range(num_convs)))
        widths = [embed_dim * pooled_size**2] + [hidden_dim] * num_layers
        layers = [
            layer
            for width, out in zip(widths, widths[1:], strict=False)
            for layer in (nn.Linear(width, out), nn.ReLU(inplace=True))
        ]
        self.shared = nn.Sequential(nn.Flatten(), *layers)
        self.class_pred = nn.Linear(hidden_dim, num_classes + 1)
        self.box_pred = nn.Linear(hidden_dim, 4 if class_agnostic else 4 * num_classes)
        for layer, init in (
            *((layer, nn.init.xavier_uniform_) for layer in layers if isinstance(layer, nn.Linear)),
            (self.class_pred, lambda weight: nn.init.normal_(weight, std=0.01)),
            (self.box_pred, lambda weight: nn.init.normal_(weight, std=0.001)),
        ):
            init(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Pyramid, objects: PaddedGroundTruth) -> tuple[dict[str, Tensor], Candidates]:
        """Return the losses `rpn_class`, `rpn_bbox`, `class` (cross-entropy) and `giou`.

        The candidates are the sampled proposals, with the means of their RoIAlign features.
        """
        losses, proposals, valid = self.proposals(pyramid, objects)
        boxes, assigned = self.sample(proposals, valid, objects)
        image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
        pooled = pyramid_roi_align(
            pyramid.maps[:-1], pyramid.strides[:-1], boxes.flatten(0, 1), image, self.pooled_size, self.finest
        )
        hidden = self.shared(self.convs(pooled)).unflatten(0, assigned.shape)
        logits, deltas = self.class_pred(hidden).float(), self.box_pred(hidden).float()
        losses |= self.losses(logits, deltas.unflatten(-1, (-1, 4)), boxes, assigned, objects)

        def features(index: Tensor) -> Tensor:
            return gather_rows(pooled.mean(dim=(-2, -1)).unflatten(0, assigned.shape), index)

        return losses, Candidates(boxes, assigned, features)

    def sample(self, proposals: Tensor, valid: Tensor, objects: PaddedGroundTruth) -> tuple[Tensor, Tensor]:
        """Sample proposals (B, P, 4) and ground truths: return boxes (B, S, 4) and their assignment (B, S)."""
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
        """Losses of the sampled boxes (B, S, 4), averaged over the samples.

        Args:
            logits: (B, S, C + 1), background last.
            deltas: (B, S, C, 4); (B, S, 1, 4) if class-agnostic.
        """
        valid = assigned != IGNORED
        number = valid.sum().clamp(min=1)
        labels = objects.labels.gather(1, assigned.clamp(min=0))
        labels = labels.masked_fill(assigned == BACKGROUND, self.num_classes)
        entropy = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")

        image, place = (assigned >= 0).nonzero(as_tuple=True)
        column = torch.zeros_like(place) if self.class_agnostic else labels[image, place]
        refined = apply_deltas(boxes[image, place], deltas[image, place, column], self.delta_weights)
        target = objects.boxes[image, assigned[image, place]]
        return {
            "class": self.class_weight * (entropy * valid).sum() / number,
            "giou": self.giou_weight * (1 - giou(refined, target)).sum() / number,
        }
