"""Learning-rate schedules and optimizer parameter groups."""

from .build import get_default_optimizer_params
from .lr_scheduler import WarmupParamScheduler

__all__ = ["WarmupParamScheduler", "get_default_optimizer_params"]
