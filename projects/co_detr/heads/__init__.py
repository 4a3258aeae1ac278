"""Auxiliary heads: detectors with one-to-many assignments on the encoder's features."""

from .atss import ATSSHead
from .base import AuxiliaryHead, Candidates, PaddedGroundTruth, Pyramid
from .faster_rcnn import FasterRCNNHead

__all__ = ["ATSSHead", "AuxiliaryHead", "Candidates", "FasterRCNNHead", "PaddedGroundTruth", "Pyramid"]
