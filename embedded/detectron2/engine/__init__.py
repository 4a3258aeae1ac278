"""The training loop, what hooks into it, and how processes are started for it."""

from . import hooks
from .defaults import create_ddp_model, default_argument_parser, default_setup, default_writers
from .launch import launch
from .train_loop import HookBase, SimpleTrainer, TrainerBase

__all__ = [
    "HookBase",
    "SimpleTrainer",
    "TrainerBase",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "hooks",
    "launch",
]
