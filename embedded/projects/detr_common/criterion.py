"""Criterion of two-stage detectors, and loss weights for configs."""

from collections.abc import Mapping, Sequence

import torch
from detrex.modeling import SetCriterion
from detrex.utils import get_world_size, is_dist_avail_and_initialized
from torch import Tensor

Targets = Sequence[Mapping[str, Tensor]]


def loss_weights(
    loss_class: float = 1.0,
    loss_bbox: float = 5.0,
    loss_giou: float = 2.0,
    num_decoder_layers: int = 6,
    encoder: bool = False,
    denoising: bool = False,
) -> dict[str, float]:
    """Return the `weight_dict` of a criterion: the same three weights for every supervised output.

    Suffixes: none for the last decoder layer, `_0` … for earlier layers, `_enc` for the encoder's proposals, and `_dn`,
    `_dn_0` … for denoising queries.
    """
    layers = ["", *(f"_{i}" for i in range(num_decoder_layers - 1))]
    suffixes = layers + ["_enc"] * encoder + [f"_dn{layer}" for layer in layers] * denoising
    base = {"loss_class": loss_class, "loss_bbox": loss_bbox, "loss_giou": loss_giou}
    return {name + suffix: weight for suffix in suffixes for name, weight in base.items()}


def box_normalizer(count: int | Tensor, device: torch.device) -> float | Tensor:
    """Average a number of ground truths over all processes, at least 1: the divisor of sums over matched pairs.

    Every process must call it.

    Args:
        count: ground truths of this process, or the sum of their weights as a 0-dimensional float32 tensor.

    Returns:
        A float for an int without distributed training, else a tensor on `device`.
    """
    if not is_dist_avail_and_initialized():
        return count.clamp(min=1.0) if isinstance(count, Tensor) else float(max(count, 1))
    total = count.clone() if isinstance(count, Tensor) else torch.tensor(float(count), device=device)
    torch.distributed.all_reduce(total)
    return (total / get_world_size()).clamp(min=1.0)


class TwoStageCriterion(SetCriterion):
    """`SetCriterion` over all decoder layers and over the encoder's proposals (`outputs["enc_outputs"]`).

    Args:
        two_stage_binary_cls: the proposals are class-agnostic: every label counts as class 0.

    For the other arguments see `SetCriterion`.
    """

    def __init__(
        self,
        num_classes,
        matcher,
        weight_dict,
        losses=("class", "boxes"),
        eos_coef=None,
        loss_class_type="focal_loss",
        alpha: float = 0.25,
        gamma: float = 2.0,
        two_stage_binary_cls: bool = False,
    ):
        super().__init__(num_classes, matcher, weight_dict, list(losses), eos_coef, loss_class_type, alpha, gamma)
        self.two_stage_binary_cls = two_stage_binary_cls

    @staticmethod
    def normalizer(outputs: Mapping, targets: Targets) -> float | Tensor:
        """Return `box_normalizer` for the ground truths of all images."""
        return box_normalizer(sum(len(target["labels"]) for target in targets), outputs["pred_logits"].device)

    def losses_given(
        self, outputs: Mapping, targets: Targets, indices: list, num_boxes: float | Tensor, suffix: str
    ) -> dict[str, Tensor]:
        """Losses of one layer for given pairs (query, ground truth); keys end in `suffix`."""
        parts = (self.get_loss(kind, outputs, targets, indices, num_boxes) for kind in self.losses)
        return {name + suffix: value for part in parts for name, value in part.items()}

    def matched_losses(self, outputs: Mapping, targets: Targets, num_boxes: float | Tensor) -> dict[str, Tensor]:
        """Losses of all decoder layers and of the proposals, each with its own matching."""
        supervised = [("", outputs, targets)]
        supervised += [(f"_{i}", aux, targets) for i, aux in enumerate(outputs.get("aux_outputs", ()))]
        if "enc_outputs" in outputs:
            agnostic = [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]
            supervised.append(("_enc", outputs["enc_outputs"], agnostic if self.two_stage_binary_cls else targets))

        losses = {}
        for suffix, predictions, truth in supervised:
            pairs = self.matcher(predictions, truth)
            losses |= self.losses_given(predictions, truth, pairs, num_boxes, suffix)
        return losses

    def forward(self, outputs: Mapping, targets: Targets) -> dict[str, Tensor]:
        """Losses before weighting: sums over queries, divided by the number of ground truths (`box_normalizer`).

        Args:
            outputs: `pred_logits` (B, N, C), `pred_boxes` (B, N, 4), cxcywh in [0, 1]. Optional: `aux_outputs`, a list
                of dicts with these two keys, and `enc_outputs`, one such dict.
            targets: per image `labels` (G,) and `boxes` (G, 4), cxcywh in [0, 1].
        """
        return self.matched_losses(outputs, targets, self.normalizer(outputs, targets))
