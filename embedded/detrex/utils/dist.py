"""What the losses ask about the process group."""

import torch.distributed as dist


def is_dist_avail_and_initialized() -> bool:
    """Whether collectives can be called: torch was built with them and a process group exists."""
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of training processes, 1 without a process group."""
    return dist.get_world_size() if is_dist_avail_and_initialized() else 1
