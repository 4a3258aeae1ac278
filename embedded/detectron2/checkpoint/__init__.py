"""Save and load models, optimizers and other states of a training."""

from .detection_checkpoint import DetectionCheckpointer

__all__ = ["DetectionCheckpointer"]
