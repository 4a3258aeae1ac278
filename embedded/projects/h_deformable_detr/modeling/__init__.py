"""H-Deformable-DETR: DETRs with hybrid matching (Jia et al., CVPR 2023, arXiv 2207.13080)."""

from .criterion import DeformableCriterion
from .h_deformable_detr import HDeformableDETR
from .transformer import (
    HDeformableDetrTransformer,
    HDeformableDetrTransformerDecoder,
    HDeformableDetrTransformerEncoder,
)

__all__ = [
    "DeformableCriterion",
    "HDeformableDETR",
    "HDeformableDetrTransformer",
    "HDeformableDetrTransformerDecoder",
    "HDeformableDetrTransformerEncoder",
]
