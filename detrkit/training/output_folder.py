"""The output folder of a training: whether it holds another one already."""

from __future__ import annotations

import os
from pathlib import Path

from detectron2.utils import comm

CHECKPOINTS = ("model_*.pth", "last_checkpoint")
WRITTEN = (
    *CHECKPOINTS,
    "metrics.json",
    "report.html",
    "coco_instances_results.json",
    "config.yaml",
    "log.txt*",
    "events.out.tfevents.*",
    "nonfinite_*.pth",
)
"""Patterns of the files that a training writes."""


def claim_output_folder(folder: str | os.PathLike, *, resume: bool, overwrite: bool) -> None:
    """Make sure that a training may write to a folder. Every process of a run calls it.

    Args:
        resume: the training continues the one in the folder.
        overwrite: delete the files that an earlier training wrote there; others stay.

    Raises:
        ValueError: the folder holds a training, and neither was asked for.
    """
    path = Path(folder)
    files = [file for pattern in (*CHECKPOINTS, "metrics.json") for file in sorted(path.glob(pattern))]
    found = [file.name for file in files if file.stat().st_size]
    if found and not (resume or overwrite):
        raise ValueError(
            f"{path} holds a training already ({found[0]}): --resume goes on with it, --overwrite deletes its files, "
            "train.output_dir=FOLDER trains elsewhere"
        )
    comm.synchronize()  # no process may see what another one has deleted
    if overwrite and not resume and comm.is_main_process():
        for pattern in WRITTEN:
            for file in path.glob(pattern):
                file.unlink()
    comm.synchronize()
