"""Schedules over training progress, on top of fvcore's."""

from __future__ import annotations

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)


class WarmupParamScheduler(CompositeParamScheduler):
    """A schedule whose first part is replaced by a warmup (Goyal et al., arXiv:1706.02677, section 2.2).

    Args:
        scheduler: the schedule proper, a function of the progress in [0, 1).
        warmup_factor: where the warmup starts, as a multiple of the schedule's first value.
        warmup_length: how long the warmup takes, as a fraction of the training.
        warmup_method: "linear" rises to the schedule's value at the end of the warmup; "constant" stays and jumps.
        rescale_interval: scale the whole schedule to the remaining iterations, instead of dropping its first part.
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
            raise ValueError(f'warmup_method is "{warmup_method}", but must be "linear" or "constant"')
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )
