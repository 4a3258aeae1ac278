"""Backbones, and what detectors do with their detections."""

from .postprocessing import detector_postprocess

__all__ = ["detector_postprocess"]
