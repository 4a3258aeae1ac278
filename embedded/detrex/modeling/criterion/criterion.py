"""Set prediction loss of DETR (ECCV 2020, section 3.1) with softmax or focal classification."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detrex.layers import box_cxcywh_to_xyxy
from detrex.layers.box_ops import elementwise_generalized_box_iou
from detrex.utils import get_world_size, is_dist_avail_and_initialized
from torch import Tensor, nn

Targets = list[dict[str, Tensor]]
Indices = list[tuple[Tensor, Tensor]]


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017, eq. 5), summed over all entries; `targets` (0 or 1) in the shape of `logits`.

    With a negative `alpha`, positives and negatives have equal weight.
    """
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    prob = logits.sigmoid()
    miss = prob + targets - 2 * prob * targets
    loss = bce * miss**gamma
    if alpha >= 0:
        loss = loss * (1 - alpha + (2 * alpha - 1) * targets)
    return loss.sum()


def matched_queries(indices: Indices) -> tuple[Tensor, Tensor]:
    """Return the (image, query) indices of all matched queries of a batch, image by image."""
    queries = torch.cat([query for query, _ in indices])
    images = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(indices)])
    return images, queries


def matched_targets(targets: Targets, indices: Indices, key: str) -> Tensor:
    """Return `targets[…][key]` of the matched objects, in the order of `matched_queries`."""
    return torch.cat([target[key][objects] for target, (_, objects) in zip(targets, indices, strict=True)])


class SetCriterion(nn.Module):
    """Match the predictions of each decoder layer with the objects, and compute the losses of the pairs.

    Args:
        num_classes: number of object classes. With `"ce_loss"` the logits have one more class at the end: "no object".
        matcher: called with (outputs, targets); returns (queries, objects) for each image.
        weight_dict: weight of each loss by name; the detector applies it.
        losses: which of `"class"` and `"boxes"` to compute.
        eos_coef: weight of "no object" in `"ce_loss"`.
        loss_class_type: `"focal_loss"` (sigmoid) or `"ce_loss"` (softmax).
        alpha, gamma: parameters of the focal loss.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        weight_dict: dict[str, float],
        losses: Sequence[str] = ("class", "boxes"),
        eos_coef: float = 0.1,
        loss_class_type: str = "focal_loss",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ):
        super().__init__()
        if loss_class_type not in ("ce_loss", "focal_loss"):
            raise ValueError(f"loss_class_type is {loss_class_type!r}; use 'focal_loss' or 'ce_loss'")
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.losses = losses
        self.eos_coef = eos_coef
        self.loss_class_type = loss_class_type
        self.alpha = alpha
        self.gamma = gamma

    def loss_labels(
        self, outputs: dict[str, Tensor], targets: Targets, indices: Indices, num_boxes: float | Tensor
    ) -> dict[str, Tensor]:
        """Return `loss_class`; the target of unmatched queries is "no object".

        The focal loss is summed over queries and classes and divided by `num_boxes`; the softmax cross entropy is
        the mean over queries, weighted by their target class.
        """
        logits = outputs["pred_logits"].float()
        target_classes = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        target_classes[matched_queries(indices)] = matched_targets(targets, indices, "labels").to(logits.device)
        if self.loss_class_type == "ce_loss":
            weight = logits.new_ones(self.num_classes + 1)
            weight[-1] = self.eos_coef
            return {"loss_class": F.cross_entropy(logits.transpose(1, 2), target_classes, weight)}
        one_hot = torch.zeros(*logits.shape[:2], self.num_classes + 1, device=logits.device)
        one_hot = one_hot.scatter(2, target_classes[..., None], 1)[..., :-1]
        return {"loss_class": sigmoid_focal_loss(logits, one_hot, self.alpha, self.gamma) / num_boxes}

    def loss_boxes(
        self, outputs: dict[str, Tensor], targets: Targets, indices: Indices, num_boxes: float | Tensor
    ) -> dict[str, Tensor]:
        """Return `loss_bbox` (L1 of normalised `cxcywh`) and `loss_giou` (1 - GIoU): sums over pairs / `num_boxes`."""
        predicted = outputs["pred_boxes"].float()[matched_queries(indices)]
        target_boxes = matched_targets(targets, indices, "boxes").to(predicted)
        giou = elementwise_generalized_box_iou(box_cxcywh_to_xyxy(predicted), box_cxcywh_to_xyxy(target_boxes))
        return {
            "loss_bbox": (predicted - target_boxes).abs().sum() / num_boxes,
            "loss_giou": (1 - giou).sum() / num_boxes,
        }

    def get_loss(
        self,
        loss: str,
        outputs: dict[str, Tensor],
        targets: Targets,
        indices: Indices,
        num_boxes: float | Tensor,
        **kwargs,
    ) -> dict[str, Tensor]:
        """Return the losses of one kind, `"class"` or `"boxes"`, for given pairs."""
        compute = {"class": self.loss_labels, "boxes": self.loss_boxes}.get(loss)
        if compute is None:
            raise ValueError(f"unknown loss {loss!r}; use 'class' or 'boxes'")
        return compute(outputs, targets, indices, num_boxes, **kwargs)

    def average_num_boxes(self, targets: Targets, device: torch.device) -> float | Tensor:
        """Return the mean number of objects per process, at least 1: the divisor of sums over pairs."""
        count = sum(len(target["labels"]) for target in targets)
        if not is_dist_avail_and_initialized():
            return max(float(count), 1.0)
        total = torch.tensor(float(count), device=device)
        dist.all_reduce(total)
        return (total / get_world_size()).clamp(min=1)

    def forward(
        self, outputs: dict, targets: Targets, return_indices: bool = False
    ) -> dict[str, Tensor] | tuple[dict[str, Tensor], list[Indices]]:
        """Return the losses of the last decoder layer, and with suffixes `_0`, `_1`, … of the earlier layers.

        Args:
            outputs: `pred_logits` (B, N, C), `pred_boxes` (B, N, 4) `cxcywh` in [0, 1]; optionally `aux_outputs`, a
                list of dicts with these keys for the earlier layers.
            targets: B dicts of `labels` (G_i,) int64 and `boxes` (G_i, 4) `cxcywh` in [0, 1].
            return_indices: also return the matched pairs of each layer, in the order of the layers.

        Raises:
            ValueError: the matcher found values that are not finite.
        """
        num_boxes = self.average_num_boxes(targets, outputs["pred_logits"].device)
        layers = {"": outputs} | {f"_{i}": layer for i, layer in enumerate(outputs.get("aux_outputs", []))}
        losses, matched = {}, []
        for suffix, layer in layers.items():
            indices = self.matcher(layer, targets)
            matched.append(indices)
            for kind in self.losses:
                values = self.get_loss(kind, layer, targets, indices, num_boxes)
                losses |= {f"{name}{suffix}": value for name, value in values.items()}
        return (losses, [*matched[1:], matched[0]]) if return_indices else losses
