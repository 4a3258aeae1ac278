"""What keeps a training whole: resuming it exactly, and what to do when something breaks. For detectron2's trainers.

Written against public names of detectron2 and PyTorch; `align-detr train` puts the parts together.
"""

from detrkit.config.changes import changes, described

from .checkpoints import BestCheckpointer, ResumePoint, SafeCheckpointer, newest_whole
from .class_heads import class_heads_matched
from .data_workers import protect_workers, sigchld_restored
from .evaluation import Evaluations, evaluate_together
from .randomness import random_states_kept
from .run_state import RunState, cut_metrics
from .stream import ResumableLoader, resumable_loader
from .trainer import Trainer
from .watchdog import Watchdog

__all__ = [
    "BestCheckpointer",
    "Evaluations",
    "ResumableLoader",
    "ResumePoint",
    "RunState",
    "SafeCheckpointer",
    "Trainer",
    "Watchdog",
    "changes",
    "class_heads_matched",
    "cut_metrics",
    "described",
    "evaluate_together",
    "newest_whole",
    "protect_workers",
    "random_states_kept",
    "resumable_loader",
    "sigchld_restored",
]
