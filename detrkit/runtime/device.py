"""Devices by name."""

import torch
from detectron2.utils import comm


def available_devices() -> list[str]:
    """Kinds of device that PyTorch can use on this machine, the fastest first: cuda, mps, cpu."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind, usable in available.items() if usable]


def best_device() -> str:
    """The first of `available_devices`."""
    return available_devices()[0]


def resolve_device(name: str, key: str = "train.device") -> str:
    """Check a device, and replace "auto" by the fastest kind.

    Args:
        name: such as "cuda", "cuda:1", "cpu" or "auto".
        key: the option that named the device, for errors.

    Raises:
        ValueError: this machine has no such device.
    """
    kinds = available_devices()
    if name == "auto":
        return kinds[0]
    available = {kind: torch.cuda.device_count() if kind == "cuda" else 1 for kind in kinds}
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.index or 0) >= available.get(device.type, 0):
        counts = [f"{kind} (0 to {available[kind] - 1})" if available[kind] > 1 else kind for kind in kinds]
        raise ValueError(f"{key}={name} is not available; this machine has {', '.join(counts)}")
    if device.index is not None and comm.get_world_size() > 1:
        raise ValueError(f"{key}={name} is one device, but there are several processes: say {device.type}")
    return name


def device_name(name: str) -> str:
    """Such as "cuda (NVIDIA A100)" or "cpu (8 threads)"."""
    device = torch.device(name)
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
