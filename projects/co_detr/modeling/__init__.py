"""Co-DINO: detector, criterion, and collaboration module (auxiliary heads and positive queries)."""

from .co_dino import CoDINO
from .collaboration import Collaboration, auxiliary_heads
from .criterion import CoDINOCriterion

__all__ = ["CoDINO", "CoDINOCriterion", "Collaboration", "auxiliary_heads"]
