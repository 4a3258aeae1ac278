"""Matching, losses, backbones and necks of DETR-style detectors."""

from .backbone import BasicStem, ResNet, make_stage
from .criterion import SetCriterion
from .matcher import HungarianMatcher
from .neck import ChannelMapper

__all__ = ["BasicStem", "ChannelMapper", "HungarianMatcher", "ResNet", "SetCriterion", "make_stage"]
