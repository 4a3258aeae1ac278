"""State of the process group."""

import torch.distributed as dist


def is_dist_avail_and_initialized() -> bool:
    """Return whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if is_dist_avail_and_initialized() else 1
