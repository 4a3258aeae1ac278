"""Checkpoints of detectors."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from .convert import LoadReport, load_weights, state_dict_of
from .formats import read_weights
from .urls import local_file


class DetectionCheckpointer(Checkpointer):
    """Saves to and loads from `.pth` files, and keeps the name of the newest in `last_checkpoint`.

    A file holds `{"model": state dict, <name>: state dict of each checkpointable, "iteration": ...}`; only tensors
    and plain data, so that no code runs when it is loaded. Files are replaced in one step.

    Args:
        model: possibly in DistributedDataParallel; keys are those of the model inside.
        save_dir: the folder of the run.
        save_to_disk: by default, whether this is the main process.
        checkpointables: objects with `state_dict()` and `load_state_dict()`.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ):
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self._strict = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `<name>.pth` with `kwargs` beside the states, and make it the newest."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()}
        path = Path(self.save_dir, f"{name}.pth")
        with _replacing(path, "wb") as file:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, file)
        self.logger.info("Saved checkpoint %s", path)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a file of `save_dir` the newest."""
        with _replacing(Path(self.save_dir, "last_checkpoint"), "w") as file:
            file.write(last_filename_basename)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load the model and the checkpointables from a file or URL, all of them or those of `checkpointables`.

        Takes what `formats.read_weights` reads, at a path or URL of `urls.local_file`. The model's part is fitted as
        `convert.load_weights` does it, and a report is logged.

        Returns:
            What else the file holds, such as `iteration`. An empty path loads nothing.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be downloaded.
            ValueError: it is not a checkpoint, wants to run code, or is one of another architecture.
        """
        self._path = local_file(path) if path else ""
        rest = super().load(self._path, *args, **kwargs)
        if rest.get("ema_state"):
            self.logger.info("%s has averaged weights too, which were not taken", os.path.basename(self._path))
        return rest

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load everything from the newest checkpoint of `save_dir` if `resume` and there is one; else the model's
        weights from `path`.

        Raises:
            ValueError: the checkpoint to resume from is not of exactly this model; and as in `load`.
        """
        self._strict = resume and self.has_checkpoint()
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self._strict = False

    def _load_file(self, f: str) -> dict[str, Any]:
        """Read a file into `{"model": state dict, ...}`, on the CPU."""
        content = read_weights(f)
        weights = state_dict_of(content, self._path)
        others = content if "model" in content else {}
        return {**others, "model": weights}

    def _load_model(self, checkpoint: dict[str, Any]) -> LoadReport:
        report = load_weights(self.model, checkpoint.pop("model"), self._path)
        if self._strict and not report.complete:
            raise ValueError(
                f"{self._path} is of another model, so it cannot be resumed from ({report.differences()}): use it as "
                "train.init_checkpoint, with another train.output_dir"
            )
        if self._strict and (lacking := self.checkpointables.keys() - checkpoint.keys()):
            self.logger.warning("%s has no %s: starting anew with it", self._path, ", ".join(sorted(lacking)))
        return report

    def _log_incompatible_keys(self, incompatible: LoadReport) -> None:
        level = logging.INFO if incompatible.complete else logging.WARNING
        self.logger.log(level, "Weights from %s", incompatible)


@contextmanager
def _replacing(path: Path, mode: str) -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block ends, and never if writing fails."""
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with unfinished.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
