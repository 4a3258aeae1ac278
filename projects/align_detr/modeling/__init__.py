"""Align-DETR's losses, matcher and criteria."""

from .criterion import AlignDINOCriterion, AlignHDETRCriterion, AlignSetCriterion
from .federated import FederatedClasses
from .h_deformable_detr import AlignHDeformableDETR
from .losses import align_loss, ia_bce_loss, quality, rank_weights
from .matcher import MixedMatcher

__all__ = [
    "AlignDINOCriterion",
    "AlignHDETRCriterion",
    "AlignHDeformableDETR",
    "AlignSetCriterion",
    "FederatedClasses",
    "MixedMatcher",
    "align_loss",
    "ia_bce_loss",
    "quality",
    "rank_weights",
]
