"""A trained detector from its config and weights, for the tools that look at one."""

import command_line  # noqa: F401  (sets sys.path)

from align_detr.checkpoint_files import WholeModelCheckpointer, load_detector

__all__ = ["WholeModelCheckpointer", "load_detector"]
