"""Collectives that also work in a run of a single process, where they cost nothing.

Objects travel by pickle, over gloo when the process group has it (`engine.launch` always gives it one).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch.distributed as dist


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes in the run, over all machines."""
    return dist.get_world_size() if _distributed() else 1


def get_rank() -> int:
    """Number of this process in the run, from 0."""
    return dist.get_rank() if _distributed() else 0


def get_local_rank() -> int:
    """Number of this process on its machine, from 0: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if _distributed() else 0


def is_main_process() -> bool:
    """Whether this is rank 0, the one that prints and writes."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait for all processes."""
    if get_world_size() > 1:
        dist.barrier()


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The picklable `data` of every process by rank, on process `dst`; an empty list on the others."""
    if get_world_size() == 1:
        return [data]
    receives = dist.get_rank(group) == dst
    received = [None] * dist.get_world_size(group) if receives else None
    dist.gather_object(data, received, dst=dst, group=group)
    return received or []


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The picklable `data` of every process by rank, on every process."""
    if get_world_size() == 1:
        return [data]
    received: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(received, data, group=group)
    return received


def shared_random_seed() -> int:
    """A random seed below 2**31 that all processes agree on, from NumPy's generator. They must all call it."""
    return all_gather(int(np.random.randint(2**31)))[0]
