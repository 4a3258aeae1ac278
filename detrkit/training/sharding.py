"""Optimizers whose state is spread over the processes of a training."""

from __future__ import annotations

import torch
from detectron2.utils import comm

from detrkit.config.load import call_parameters


def shard_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return an equal optimizer whose state is spread over the processes (ZeRO stage 1, arXiv 1910.02054).

    Each process keeps the state of its share of the parameters. With one process, return `optimizer` itself.
    """
    if comm.get_world_size() == 1:
        return optimizer
    arguments = call_parameters(type(optimizer))  # `defaults` may hold more than the constructor takes
    given = {name: value for name, value in optimizer.defaults.items() if name in arguments}
    from torch.distributed.optim import ZeroRedundancyOptimizer  # takes a second to import, with all of FSDP

    return ZeroRedundancyOptimizer(optimizer.param_groups, type(optimizer), **given)


def gather_shards(optimizer: torch.optim.Optimizer) -> None:
    """Gather the complete state on the main process, for its `state_dict()` until the next step.

    Every process calls it. The state has the form of a plain optimizer's, so any number of processes can load it.
    """
    if hasattr(optimizer, "consolidate_state_dict"):
        optimizer.consolidate_state_dict(to=0)
