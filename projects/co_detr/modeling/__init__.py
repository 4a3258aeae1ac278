"""Co-DINO's detector, criterion, and what collaborates with them in training."""

from .co_dino import CoDINO
from .collaboration import Collaboration, auxiliary_heads
from .criterion import CoDINOCriterion

__all__ = ["CoDINO", "CoDINOCriterion", "Collaboration", "auxiliary_heads"]
