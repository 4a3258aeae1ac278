"""Optimizers whose state is spread over the processes of a training."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch.distributed.optim import ZeroRedundancyOptimizer

from detrkit.config.load import call_parameters


def shard_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimizer of the same kind, groups and settings, each process of which keeps the state of its share of the
    parameters alone (ZeRO stage 1, arXiv 1910.02054). In a training of one process it is `optimizer` itself."""
    if comm.get_world_size() == 1:
        return optimizer
    arguments = call_parameters(type(optimizer))  # `defaults` may hold more than the constructor takes
    given = {name: value for name, value in optimizer.defaults.items() if name in arguments}
    return ZeroRedundancyOptimizer(optimizer.param_groups, type(optimizer), **given)


def gather_shards(optimizer: torch.optim.Optimizer) -> None:
    """Make the main process's `state_dict()` whole until the next step. Every process calls it. The state of a sharded
    optimizer then is that of a plain one, and is loaded by any number of processes."""
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        optimizer.consolidate_state_dict(to=0)
