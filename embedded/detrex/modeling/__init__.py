"""Matching, losses, backbones and necks of DETR-style detectors."""

from .backbone import BasicStem, ResNet, TimmBackbone, make_stage
from .criterion import SetCriterion
from .matcher import HungarianMatcher
from .neck import ChannelMapper

__all__ = ["BasicStem", "ChannelMapper", "HungarianMatcher", "ResNet", "SetCriterion", "TimmBackbone", "make_stage"]
