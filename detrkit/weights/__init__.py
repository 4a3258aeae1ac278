"""Weights of other code bases: recognised, converted to detrex's names, and back.

    recognised = look_at("dino-4scale_r50_8xb2-12e_coco.pth")   # what it is; reads no tensors
    prepare_config(cfg, path)                                   # sets in a config what the weights were trained with
    state = convert(look_at(path, data=True)).state             # a state dict for the config's model

Nothing in a file is executed. `formats` has one module for each format; another format is one more file there.
"""

from .classes import ReportAs, class_rows, coco_names, coco_names_by_id, file_classes
from .convert import Conversion, Recognised, convert, look_at
from .files import WeightsFile, read
from .format import Format, Requirements
from .formats import all_formats, recognise
from .loading import load_state, prepare_config
from .report import Report
from .settings import apply_settings

__all__ = [
    "Conversion",
    "Format",
    "Recognised",
    "Report",
    "ReportAs",
    "Requirements",
    "WeightsFile",
    "all_formats",
    "apply_settings",
    "class_rows",
    "coco_names",
    "coco_names_by_id",
    "convert",
    "file_classes",
    "load_state",
    "look_at",
    "prepare_config",
    "read",
    "recognise",
]
