"""The output folder of a training: whether it holds another one already."""

from __future__ import annotations

import os
from pathlib import Path

from detrkit.runtime.files import check_writable

CHECKPOINTS = ("model_*.pth", "last_checkpoint")
WRITTEN = (
    *CHECKPOINTS,
    "metrics.json",
    "metrics.csv",
    "mlflow_run.txt",
    "report.html",
    "coco_instances_results.json",
    "errors.json",
    "config.yaml",
    "log.txt*",
    "events.out.tfevents.*",
    "nonfinite_*.pth",
)
"""Patterns of the files that a training writes."""


def check_output_folder(
    folder: str | os.PathLike, *, resume: bool | str, overwrite: bool, is_main: bool = True
) -> None:
    """Check that a training may write to a folder. Nothing is changed there.

    Args:
        resume: the training continues the one in the folder, which must have a checkpoint unless this is "auto".
        overwrite: the files of an earlier training may be deleted.
        is_main: whether this process tests that the folder can be written to; several tests at once would collide.

    Raises:
        ValueError: the folder holds a training, without `resume` or `overwrite`; or there is none to resume.
        OSError: the folder cannot be written to.
    """
    path = Path(folder)
    if resume and resume != "auto" and not any(path.glob("*.pth")) and not (path / "last_checkpoint").is_file():
        raise ValueError(
            f"{path} has no checkpoint to resume from: leave out --resume to begin a training, give the "
            "train.output_dir of an earlier one, or begin anew in such a case by --resume=auto"
        )
    files = [file for pattern in (*CHECKPOINTS, "metrics.json") for file in sorted(path.glob(pattern))]
    found = [file.name for file in files if file.stat().st_size]
    if found and not (resume or overwrite):
        raise ValueError(
            f"{path} holds a training already ({found[0]}): --resume goes on with it, --overwrite deletes its files, "
            "train.output_dir=FOLDER trains elsewhere"
        )
    if is_main:
        check_writable(path, "train.output_dir=")


def claim_output_folder(folder: str | os.PathLike, *, resume: bool | str, overwrite: bool) -> None:
    """Make sure that a training may write to a folder. Every process of a run calls it, with the folder locked.

    Args:
        resume: the training goes on with the one in the folder.
        overwrite: delete the files that an earlier training wrote there; others stay.

    Raises:
        ValueError, OSError: as `check_output_folder`.
    """
    from detectron2.utils import comm  # imports PyTorch, which check_output_folder does not need

    path = Path(folder)
    check_output_folder(path, resume=resume, overwrite=overwrite, is_main=comm.is_main_process())
    comm.synchronize()  # no process may see what another one has deleted
    if overwrite and not resume and comm.is_main_process():
        for pattern in WRITTEN:
            for file in path.glob(pattern):
                file.unlink()
    comm.synchronize()
