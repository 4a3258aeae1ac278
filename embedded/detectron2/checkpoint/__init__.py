"""Save and load models, optimizers and the other states that a run needs to resume."""

from .detection_checkpoint import DetectionCheckpointer

__all__ = ["DetectionCheckpointer"]
