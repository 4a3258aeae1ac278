"""Weights of other code bases: recognised, converted to detrex's names, and back.

    recognised = look_at("dino-4scale_r50_8xb2-12e_coco.pth")   # what it is; reads no tensors
    prepare_config(cfg, path)                                   # sets in a config what the weights were trained with
    state = convert(look_at(path, data=True)).state             # a state dict for the config's model

Nothing in a file is executed. `formats` has one module for each format; another format is one more file there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classes import coco_names, coco_names_by_id, encoder_objectness
    from .conversion import SETTINGS, Conversion, Recognised, convert, look_at
    from .exporting import DETREX, SUFFIXES, detector_of, families, find_format, needed_there, write_weights
    from .files import WeightsFile, read
    from .format import Format, Requirements
    from .formats import all_formats, recognise
    from .loading import (
        Prepared,
        classes_of_weights,
        is_of_other_code_base,
        load_state,
        local_file,
        prepare_config,
    )
    from .names import is_name, is_remote, local_path
    from .report import Report
    from .settings import apply_settings

# Imported when they are asked for, so that `zoo` can be had without PyTorch, which takes seconds.
_HOMES = {
    "classes": ("coco_names", "coco_names_by_id", "encoder_objectness"),
    "conversion": ("SETTINGS", "Conversion", "Recognised", "convert", "look_at"),
    "exporting": ("DETREX", "SUFFIXES", "detector_of", "families", "find_format", "needed_there", "write_weights"),
    "files": ("WeightsFile", "read"),
    "format": ("Format", "Requirements"),
    "formats": ("all_formats", "recognise"),
    "loading": (
        "Prepared",
        "classes_of_weights",
        "is_of_other_code_base",
        "load_state",
        "local_file",
        "prepare_config",
    ),
    "names": ("is_name", "is_remote", "local_path"),
    "report": ("Report",),
    "settings": ("apply_settings",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [
    "DETREX",
    "SUFFIXES",
    "SETTINGS",
    "Conversion",
    "Format",
    "Prepared",
    "Recognised",
    "Report",
    "Requirements",
    "WeightsFile",
    "all_formats",
    "apply_settings",
    "classes_of_weights",
    "coco_names",
    "coco_names_by_id",
    "convert",
    "detector_of",
    "encoder_objectness",
    "families",
    "find_format",
    "is_name",
    "is_of_other_code_base",
    "is_remote",
    "local_file",
    "local_path",
    "load_state",
    "look_at",
    "needed_there",
    "prepare_config",
    "read",
    "recognise",
    "write_weights",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
