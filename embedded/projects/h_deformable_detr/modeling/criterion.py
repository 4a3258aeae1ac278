"""Criterion of H-Deformable-DETR, used for both branches."""

from collections.abc import Sequence

from projects.detr_common import TwoStageCriterion
from torch import nn


class DeformableCriterion(TwoStageCriterion):
    """`TwoStageCriterion` with class-agnostic proposals. For the arguments see `TwoStageCriterion`."""

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
        super().__init__(
            num_classes,
            matcher,
            weight_dict,
            losses,
            eos_coef,
            loss_class_type,
            alpha,
            gamma,
            two_stage_binary_cls=True,
        )
