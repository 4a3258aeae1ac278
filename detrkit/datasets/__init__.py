"""Datasets: read folders of many layouts, register them with detectron2, draw small ones."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Conversion": "convert",
    "convert_dataset": "convert",
    "register_bccd": "registration",
    "register_coco": "registration",
    "register_neu_det": "registration",
    "register_own_datasets": "registration",
    "register_tiny_coco": "registration",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    # Registration imports PyTorch, which drawing images and help texts do not need.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
