"""Align-DETR's criteria: which queries are matched to which ground truth, and how much each pair weighs.

The three classes differ only in the outputs their detectors return. All layers that have outputs of one shape are
stacked and go through one matching and one set of kernels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detrex.modeling import SetCriterion
from detrex.utils import get_world_size, is_dist_avail_and_initialized
from projects.dino.modeling import DINOCriterion
from projects.h_deformable_detr.modeling import DeformableCriterion
from torch import Tensor

from .federated import FederatedClasses
from .losses import (
    CLASSIFICATION_LOSSES,
    Matched,
    iou_and_giou,
    quality,
    rank_weights,
    split_entries,
)
from .matcher import GroundTruth, LayerStack, MixedMatcher, Pairs

Outputs = dict  # detrex's: pred_logits (B, N, C), pred_boxes (B, N, 4) cxcywh in [0, 1], aux_outputs, enc_outputs
Targets = list[dict[str, Tensor]]  # per image: labels (G,), boxes (G, 4) cxcywh in [0, 1]
Losses = dict[str, Tensor]
LOSS_NAMES = ("loss_class", "loss_bbox", "loss_giou")


class Layer(NamedTuple):
    """One decoder layer, or the encoder's proposals."""

    outputs: Outputs
    match_number: int = 1
    class_agnostic: bool = False


class AlignLosses:
    """Align-DETR's matching and losses, mixed in before the criterion of the detector.

    Args:
        num_classes, matcher, weight_dict: as detrex's criteria take them; the matcher is a `MixedMatcher`.
        alpha: exponent of the score in the quality t = s^alpha * u^(1 - alpha); not that of the matcher's focal cost.
        gamma: focusing exponent of the classification loss.
        tau: scale of the rank weights exp(-r / tau).
        k: the largest number of queries per ground truth in the encoder's proposals and the intermediate decoder
            layers; the last layer has one.
        match_number: one number for each layer, in place of k: [encoder, dec_0, ..., dec_last]. The first entry is
            required even if the detector has no encoder proposals.
        loss_class_type: "ia_bce_loss" (released code), "align_loss" (later paper), or a loss to compare with, under the
            same matching and rank weights: "focal_loss", "quality_focal_loss", "varifocal_loss",
            "matchability_aware_loss", "position_supervised_loss". `losses.py` has the formulas.
        federated: sum the classification loss over a sample of the classes, see `FederatedClasses`; None: over all.
        criterion_options: further arguments of the detector's own criterion.

    Raises:
        ValueError: an option is out of its range.
    """

    class_agnostic_proposals = False  # True: the encoder's proposals have one class, "object"

    def __init__(
        self,
        num_classes: int,
        matcher: MixedMatcher,
        weight_dict: dict[str, float],
        alpha: float = 0.25,
        gamma: float = 2.0,
        tau: float = 1.5,
        k: int = 2,
        match_number: Sequence[int] | None = None,
        loss_class_type: str = "ia_bce_loss",
        federated: FederatedClasses | None = None,
        **criterion_options,
    ):
        # detrex's criteria accept only their own loss types. Their loss is never called.
        super().__init__(
            num_classes=num_classes,
            matcher=matcher,
            weight_dict=weight_dict,
            loss_class_type="focal_loss",
            alpha=alpha,
            gamma=gamma,
            **criterion_options,
        )
        if loss_class_type not in CLASSIFICATION_LOSSES:
            raise ValueError(
                f"loss_class_type={loss_class_type!r}: choose one of {', '.join(CLASSIFICATION_LOSSES)}"
            )
        if not (0 <= alpha <= 1 and gamma >= 0 and tau > 0):
            raise ValueError(
                f"alpha={alpha}, gamma={gamma}, tau={tau}: alpha must lie in [0, 1], gamma be at least 0 and "
                "tau above 0"
            )
        numbers = [k] if match_number is None else list(match_number)
        if any(not isinstance(n, int) or n < 1 for n in numbers):
            raise ValueError(f"k={k}, match_number={match_number}: match numbers are integers from 1 up")
        self.tau, self.k, self.federated = tau, k, federated
        self.match_number = None if match_number is None else numbers
        self.classification_loss = CLASSIFICATION_LOSSES[loss_class_type]

    def _match_numbers(self, num_decoder_layers: int) -> tuple[int, list[int]]:
        """The encoder's match number and those of the decoder layers."""
        if self.match_number is None:
            return self.k, [self.k] * (num_decoder_layers - 1) + [1]
        if len(self.match_number) != 1 + num_decoder_layers:
            raise ValueError(
                f"match_number={self.match_number} has {len(self.match_number)} entries, but this model takes "
                f"{1 + num_decoder_layers}: [encoder, dec_0, ..., dec_{num_decoder_layers - 1}]"
            )
        return self.match_number[0], self.match_number[1:]

    def _layers(self, outputs: Outputs) -> dict[str, Layer]:
        """Decoder layers and encoder proposals, by the suffix of their losses."""
        encoder_number, decoder_numbers = self._match_numbers(1 + len(outputs.get("aux_outputs", [])))
        layers = {
            suffix: Layer(layer, number)
            for (suffix, layer), number in zip(decoder_layers(outputs).items(), decoder_numbers, strict=True)
        }
        if "enc_outputs" in outputs:
            layers["_enc"] = Layer(outputs["enc_outputs"], encoder_number, self.class_agnostic_proposals)
        return layers

    def _matched_losses(self, layers: dict[str, Layer], ground_truth: GroundTruth, num_boxes: float | Tensor) -> Losses:
        """Match every layer, then compute its losses."""
        stacks = stack_layers(layers)
        losses = {}
        for stack, pairs in zip(stacks, self.matcher.match_layers(stacks, ground_truth), strict=True):
            group = pairs.layer * len(ground_truth.labels) + pairs.object
            losses |= self.stack_losses(stack, pairs, ground_truth, num_boxes, group)
        return losses

    def stack_losses(
        self,
        stack: LayerStack,
        pairs: Pairs,
        ground_truth: GroundTruth,
        num_boxes: float | Tensor,
        group: Tensor | None = None,
    ) -> Losses:
        """The three losses of every layer of a stack.

        Args:
            num_boxes: divisor of every sum.
            group: (P,) the same number for all pairs of one ground truth in one layer. None: every pair has weight 1.
        """
        at_query = pairs.layer, pairs.image, pairs.query
        labels = stack.labels(ground_truth)[pairs.layer, pairs.object]
        all_logits = stack.logits
        if self.federated is not None:
            all_logits = self.federated.mask(all_logits, ground_truth.labels, stack.class_agnostic)
        unmatched_loss, logits = split_entries(all_logits, (*at_query, labels), self.gamma)
        boxes = stack.boxes[at_query]
        target_boxes = ground_truth.boxes[pairs.object]

        iou, giou = iou_and_giou(boxes, target_boxes)
        t = quality(logits.sigmoid(), iou, self.alpha)
        w = torch.ones_like(t) if group is None else rank_weights(t, group, self.tau)

        num_layers, batch = stack.logits.shape[:2]
        matched = Matched(t, iou.detach(), pairs.layer * batch + pairs.image, num_layers * batch)
        class_loss = self.classification_loss
        target = w * class_loss.target(matched, self.gamma)

        def sum_by_layer(loss: Tensor) -> Tensor:
            return loss.new_zeros(num_layers).index_add(0, pairs.layer, loss)

        losses = {
            "loss_class": class_loss.unmatched * unmatched_loss
            + sum_by_layer(class_loss.matched(logits, target, self.gamma)),
            "loss_bbox": sum_by_layer(w * (boxes - target_boxes).abs().sum(-1)),
            "loss_giou": sum_by_layer(w * (1 - giou)),
        }
        # The detectors scale each loss in place, so no two losses may share memory.
        return {
            name + suffix: loss.clone()
            for name, by_layer in losses.items()
            for suffix, loss in zip(stack.suffixes, (by_layer / num_boxes).unbind(), strict=True)
        }


class AlignSetCriterion(AlignLosses, SetCriterion):
    """Align-DETR for DAB-DETR, Conditional DETR and other detectors without encoder proposals."""

    def forward(self, outputs: Outputs, targets: Targets) -> Losses:
        """Losses `loss_{class,bbox,giou}` of the last layer, and `..._0` to `..._{L-2}` of the others."""
        ground_truth = GroundTruth.from_targets(targets)
        return self._matched_losses(self._layers(outputs), ground_truth, average_num_boxes(ground_truth))


class AlignDINOCriterion(AlignLosses, DINOCriterion):
    """Align-DETR for DINO.

    The encoder's proposals are matched like an intermediate layer. Denoising queries are paired by construction and
    have no rank weights.
    """

    @property
    def class_agnostic_proposals(self) -> bool:
        return self.two_stage_binary_cls

    def forward(self, outputs: Outputs, targets: Targets, dn_metas: dict | None = None) -> Losses:
        """Losses with the suffixes `_i`, none (last layer), `_enc`, `_dn_i` and `_dn`.

        Args:
            dn_metas: DINO's `output_known_lbs_bboxes`, `dn_num` and `single_padding`; If None, the
                denoising losses are zero: all processes return the same keys.
        """
        ground_truth = GroundTruth.from_targets(targets)
        num_boxes = average_num_boxes(ground_truth)
        losses = self._matched_losses(self._layers(outputs), ground_truth, num_boxes)
        return losses | self._denoising_losses(outputs, dn_metas, ground_truth, num_boxes)

    def _denoising_losses(
        self, outputs: Outputs, dn_metas: dict | None, ground_truth: GroundTruth, num_boxes: float | Tensor
    ) -> Losses:
        if dn_metas is None:
            suffixes = [f"_dn{suffix}" for suffix in decoder_layers(outputs)]
            zero = outputs["pred_logits"].new_zeros((), dtype=torch.float32)
            return {name + suffix: zero.clone() for name in LOSS_NAMES for suffix in suffixes}
        groups = int(dn_metas["dn_num"])
        denoised = decoder_layers(dn_metas["output_known_lbs_bboxes"])
        (stack,) = stack_layers({f"_dn{suffix}": Layer(layer) for suffix, layer in denoised.items()})
        pairs = denoising_pairs(len(stack.logits), groups, int(dn_metas["single_padding"]), ground_truth)
        return self.stack_losses(stack, pairs, ground_truth, num_boxes * groups, group=None)


class AlignHDETRCriterion(AlignLosses, DeformableCriterion):
    """Align-DETR for H-Deformable-DETR: class-agnostic proposals and a hybrid one-to-many branch."""

    class_agnostic_proposals = True

    def forward(
        self, outputs: Outputs, targets: Targets, k_one2many: int = 0, lambda_one2many: float = 1.0
    ) -> Losses:
        """Losses with the suffixes `_i`, none (last layer) and `_enc`; `..._one2many` for the hybrid branch.

        Args:
            k_one2many: match number of every layer of the hybrid branch. 0: no hybrid losses.
            lambda_one2many: factor of the hybrid branch's losses.
        """
        layers = self._layers(outputs)
        if k_one2many > 0:
            hybrid = {name: outputs[f"{name}_one2many"] for name in ("pred_logits", "pred_boxes", "aux_outputs")}
            layers |= {
                f"{suffix}_one2many": Layer(layer, k_one2many)
                for suffix, layer in decoder_layers(hybrid).items()
            }
        ground_truth = GroundTruth.from_targets(targets)
        losses = self._matched_losses(layers, ground_truth, average_num_boxes(ground_truth))
        return {
            key: loss * lambda_one2many if key.endswith("_one2many") else loss for key, loss in losses.items()
        }


def average_over_processes(count: int | Tensor, device: torch.device) -> float | Tensor:
    """Average `count` over all processes; at least 1. Every process must call it.

    Args:
        count: an int, or a 0-dimensional float32 tensor.
        device: where the processes exchange their counts.

    Returns:
        A float if `count` is an int and there is one process; else a tensor on `device`.
    """
    if not is_dist_avail_and_initialized():
        return count.clamp(min=1.0) if isinstance(count, Tensor) else float(max(count, 1))
    total = count.clone() if isinstance(count, Tensor) else torch.tensor(float(count), device=device)
    torch.distributed.all_reduce(total)
    return (total / get_world_size()).clamp(min=1.0)


def average_num_boxes(ground_truth: GroundTruth) -> float | Tensor:
    """Return the divisor of every loss: ground truths per process, averaged, at least 1."""
    return average_over_processes(len(ground_truth.labels), ground_truth.labels.device)


def decoder_layers(outputs: Outputs) -> dict[str, Outputs]:
    """Decoder layers by the suffix of their losses: `_0`, `_1`, ..., and an empty one for the last."""
    auxiliary = outputs.get("aux_outputs", [])
    return {f"_{i}": layer for i, layer in enumerate(auxiliary)} | {"": outputs}


def stack_layers(layers: dict[str, Layer]) -> list[LayerStack]:
    """Stack layers whose outputs have the same shape, in float32."""
    by_shape: dict[torch.Size, list[str]] = {}
    for suffix, layer in layers.items():
        by_shape.setdefault(layer.outputs["pred_logits"].shape, []).append(suffix)
    return [
        LayerStack(
            logits=torch.stack([layers[s].outputs["pred_logits"] for s in suffixes]).float(),
            boxes=torch.stack([layers[s].outputs["pred_boxes"] for s in suffixes]).float(),
            suffixes=suffixes,
            match_numbers=[layers[s].match_number for s in suffixes],
            class_agnostic=[layers[s].class_agnostic for s in suffixes],
        )
        for suffixes in by_shape.values()
    ]


def denoising_pairs(num_layers: int, groups: int, single_padding: int, ground_truth: GroundTruth) -> Pairs:
    """Pairs of DINO's positive denoising queries: in group g, ground truth j has query g * single_padding + j."""
    device = ground_truth.labels.device
    layer, group, index = (
        grid.flatten()
        for grid in torch.meshgrid(
            torch.arange(num_layers, device=device),
            torch.arange(groups, device=device),
            torch.arange(len(ground_truth.labels), device=device),
            indexing="ij",
        )
    )
    query = group * single_padding + ground_truth.position[index]
    return Pairs(layer, ground_truth.image[index], query, index)
