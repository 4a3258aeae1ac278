"""Schedules over training progress, based on fvcore's."""

from __future__ import annotations

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)


class WarmupParamScheduler(CompositeParamScheduler):
    """Schedule with a warmup in place of its first part (Goyal et al., arXiv:1706.02677, section 2.2).

    Args:
        scheduler: the schedule after the warmup, a function of the progress in [0, 1).
        warmup_factor: first value of the warmup, as a multiple of the schedule's first value.
        warmup_length: length of the warmup as a fraction of the training.
        warmup_method: "linear" rises to the schedule's value at the end of the warmup; "constant" jumps to it.
        rescale_interval: compress the schedule into the time after the warmup, instead of dropping its first part.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ):
        first = warmup_factor * scheduler(0.0)
        if warmup_method == "linear":
            warmup = LinearParamScheduler(first, scheduler(0.0 if rescale_interval else warmup_length))
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(first)
        else:
            raise ValueError(f'warmup_method="{warmup_method}" must be "linear" or "constant"')
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )
