"""Matching, losses and necks of DETR-style detectors."""

from .criterion import SetCriterion
from .matcher import HungarianMatcher
from .neck import ChannelMapper

__all__ = ["ChannelMapper", "HungarianMatcher", "SetCriterion"]
