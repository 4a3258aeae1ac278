"""Saving and loading models, optimizers and everything else a run needs to go on."""

from .detection_checkpoint import DetectionCheckpointer

__all__ = ["DetectionCheckpointer"]
