"""The workbench of this repository: train, evaluate, analyse and export any of its detectors.

    from detrkit import Detector, cfg_for_folder, evaluate, export, load_config, train

Importing it imports `align_detr`, which makes `detectron2`, `detrex` and `projects.*` importable.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import align_detr  # noqa: F401

if TYPE_CHECKING:
    from .api import cfg_for_folder, evaluate, train
    from .config.load import load_config
    from .datasets.registration import register_coco
    from .inference import Detector
    from .inference.export import export
    from .reports.errors import errors_of_run
    from .reports.explore import explore

# Imported when they are asked for: PyTorch takes seconds.
_HOMES = {
    "Detector": "detrkit.inference",
    "cfg_for_folder": "detrkit.api",
    "errors_of_run": "detrkit.reports.errors",
    "evaluate": "detrkit.api",
    "explore": "detrkit.reports.explore",
    "export": "detrkit.inference.export",
    "load_config": "detrkit.config.load",
    "register_coco": "detrkit.datasets.registration",
    "train": "detrkit.api",
}
__all__ = [
    "Detector",
    "cfg_for_folder",
    "errors_of_run",
    "evaluate",
    "explore",
    "export",
    "load_config",
    "register_coco",
    "train",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
