"""Functions for anchor-based heads: anchors, assignment, box deltas, RoIAlign, suppression. Boxes: xyxy in pixels."""

from .anchors import make_anchors
from .assignment import BACKGROUND, IGNORED, assign_by_iou, assign_by_statistics, pairwise_iou, sample
from .deltas import apply_deltas, box_deltas
from .nms import nms
from .roi_align import pyramid_roi_align, roi_align

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "apply_deltas",
    "assign_by_iou",
    "assign_by_statistics",
    "box_deltas",
    "make_anchors",
    "nms",
    "pairwise_iou",
    "pyramid_roi_align",
    "roi_align",
    "sample",
]
