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
    """Save and load `.pth` files; the file `last_checkpoint` has the name of the newest one.

    A file has `{"model": state dict, <name>: state dict of each checkpointable, "iteration": ...}`. It has only tensors
    and plain data, so that loading runs no code. Writing is atomic.

    Args:
        model: may be wrapped in DistributedDataParallel; keys are those of the wrapped model.
        save_dir: folder of the checkpoints.
        save_to_disk: by default true on the main process.
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
        """Write the states and `kwargs` to `<name>.pth`, and mark it as the newest checkpoint."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()}
        path = Path(self.save_dir, f"{name}.pth")
        with _replacing(path, "wb") as file:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, file)
        self.logger.info("Saved checkpoint %s", path)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Mark a file of `save_dir` as the newest checkpoint."""
        with _replacing(Path(self.save_dir, "last_checkpoint"), "w") as file:
            file.write(last_filename_basename)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load the model and the checkpointables (all, or those named in `checkpointables`) from a file or URL.

        For formats see `formats.read_weights`, for URLs `urls.local_file`, for the weights `convert.load_weights`. A
        report is logged.

        Returns:
            The other entries of the file, such as `iteration`. An empty path loads nothing.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: the download failed.
            ValueError: the file is not a checkpoint, would run code, or has another architecture.
        """
        self._path = local_file(path) if path else ""
        rest = super().load(self._path, *args, **kwargs)
        if rest.get("ema_state"):
            self.logger.info("%s also has averaged weights, which are not loaded", os.path.basename(self._path))
        return rest

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the newest checkpoint of `save_dir`, or load the model's weights from `path`.

        Resuming needs `resume` and an existing checkpoint.

        Raises:
            ValueError: the checkpoint to resume from belongs to another model; see also `load`.
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
                f"{self._path} belongs to another model and cannot be resumed from ({report.differences()}): use it as "
                "train.init_checkpoint, with another train.output_dir"
            )
        if self._strict and (lacking := self.checkpointables.keys() - checkpoint.keys()):
            self.logger.warning("%s has no %s: it starts anew", self._path, ", ".join(sorted(lacking)))
        return report

    def _log_incompatible_keys(self, incompatible: LoadReport) -> None:
        level = logging.INFO if incompatible.complete else logging.WARNING
        self.logger.log(level, "Weights from %s", incompatible)


@contextmanager
def _replacing(path: Path, mode: str) -> Iterator[IO[Any]]:
    """Open a temporary file for writing; replace `path` by it on exit, unless writing fails."""
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with unfinished.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
