"""Co-DINO and Co-Deformable-DETR: detectors, criteria, and collaboration module (heads and positive queries)."""

from .co_deformable_detr import CoDeformableDETR
from .co_dino import CoDINO
from .collaboration import Collaboration, auxiliary_heads
from .criterion import CoDeformableCriterion, CoDINOCriterion
from .queries import ContentAndPosition, ContentFromBox

__all__ = [
    "CoDINO",
    "CoDINOCriterion",
    "CoDeformableCriterion",
    "CoDeformableDETR",
    "Collaboration",
    "ContentAndPosition",
    "ContentFromBox",
    "auxiliary_heads",
]
