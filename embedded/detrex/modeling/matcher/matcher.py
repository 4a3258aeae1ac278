"""Bipartite matching of queries and objects (DETR, ECCV 2020, section 3.1)."""

import numpy as np
import torch
import torch.nn.functional as F
from detrex.layers import box_cxcywh_to_xyxy
from detrex.layers.box_ops import elementwise_generalized_box_iou
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn


def focal_cost(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return the focal loss of each entry as a positive minus its loss as a negative, for logits of any shape."""
    prob = logits.sigmoid()
    as_positive = -alpha * (1 - prob) ** gamma * F.logsigmoid(logits)
    as_negative = -(1 - alpha) * prob**gamma * F.logsigmoid(-logits)
    return as_positive - as_negative


def _explain_invalid(outputs: dict[str, Tensor], targets: list[dict[str, Tensor]], num_classes: int) -> str:
    """Return one line on why a matching cost is NaN or infinite."""
    named = [(name, outputs[name]) for name in ("pred_logits", "pred_boxes")]
    named += [(f"targets[{i}]['boxes']", target["boxes"]) for i, target in enumerate(targets)]
    for name, value in named:
        bad = int((~value.isfinite()).sum())
        if bad:
            return f"{name} holds non-finite values ({bad} of {value.numel()})"
    for i, target in enumerate(targets):
        outside = target["labels"][(target["labels"] < 0) | (target["labels"] >= num_classes)]
        if len(outside):
            known = f"0..{num_classes - 1}"
            return f"targets[{i}]['labels'] holds class {int(outside[0])}, but the model has classes {known}"
    return "the costs overflow: predicted or target boxes are too large"


class HungarianMatcher(nn.Module):
    """One-to-one assignment of queries to the objects of an image with minimal total cost.

    The cost of a pair is `cost_class · C + cost_bbox · ‖b - b̂‖₁ - cost_giou · GIoU(b, b̂)`, where C is

    * `"focal_loss_cost"`: focal loss (`alpha`, `gamma`) of the object's class as a positive, minus its loss as a
      negative, for sigmoid classifiers (Deformable DETR);
    * `"ce_cost"`: minus the softmax probability of the object's class (DETR).
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        cost_class_type: str = "focal_loss_cost",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ):
        super().__init__()
        if not (cost_class or cost_bbox or cost_giou):
            raise ValueError("HungarianMatcher: cost_class, cost_bbox and cost_giou are all 0; give one a weight")
        if cost_class_type not in ("focal_loss_cost", "ce_cost"):
            raise ValueError(
                f"HungarianMatcher: cost_class_type is {cost_class_type!r}; use 'focal_loss_cost' or 'ce_cost'"
            )
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.cost_class_type = cost_class_type
        self.alpha = alpha
        self.gamma = gamma

    def pair_costs(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        """Return the cost of each object with each query of its image, float32 (objects of the batch, N).

        Rows follow the targets, image by image. A label outside the model's classes gives a row of NaN, because
        indexing with it would abort a CUDA device. Non-finite logits of any class give NaN too.
        """
        logits, boxes = outputs["pred_logits"].float(), outputs["pred_boxes"].float()
        labels = torch.cat([target["labels"] for target in targets]).to(logits.device)
        objects = torch.cat([target["boxes"] for target in targets]).to(boxes)
        sizes = torch.tensor([len(target["labels"]) for target in targets])
        image = torch.repeat_interleave(sizes).to(logits.device)

        valid = (labels >= 0) & (labels < logits.shape[-1])
        column = labels.where(valid, 0)
        if self.cost_class_type == "focal_loss_cost":
            class_cost = focal_cost(logits[image, :, column], self.alpha, self.gamma)
        else:
            class_cost = -logits.softmax(-1)[image, :, column]
        class_cost = class_cost.masked_fill(~valid[:, None] | ~logits.isfinite().all(), torch.nan)

        boxes, objects = boxes[image], objects[:, None]
        l1 = (boxes - objects).abs().sum(-1)
        giou = elementwise_generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(objects))
        return self.cost_class * class_cost + self.cost_bbox * l1 - self.cost_giou * giou

    @torch.no_grad()
    def forward(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Match one layer's predictions.

        Args:
            outputs: `pred_logits` (B, N, C) and `pred_boxes` (B, N, 4), `cxcywh` in [0, 1].
            targets: B dicts of `labels` (G_i,) int64 and `boxes` (G_i, 4), `cxcywh` in [0, 1].

        Returns:
            For each image `(queries, objects)`, int64 on the predictions' device, min(N, G_i) entries each, sorted by
            query.

        Raises:
            ValueError: predictions or targets are not finite, or a label lies outside the model's classes.
        """
        costs = self.pair_costs(outputs, targets).cpu().numpy()
        if not np.isfinite(costs).all():
            num_classes = outputs["pred_logits"].shape[-1]
            raise ValueError(f"cannot match: {_explain_invalid(outputs, targets, num_classes)}")
        sizes = [len(target["labels"]) for target in targets]
        pairs = [linear_sum_assignment(cost.T) for cost in np.split(costs, np.cumsum(sizes)[:-1])]
        packed = torch.from_numpy(np.concatenate(pairs, axis=1)).to(outputs["pred_logits"].device)
        lengths = [len(queries) for queries, _ in pairs]
        return list(zip(packed[0].split(lengths), packed[1].split(lengths), strict=True))
