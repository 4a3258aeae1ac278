"""Checkpoints of detectors."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer, _IncompatibleKeys
from torch import nn

_KEYS_SHOWN = 3


class DetectionCheckpointer(Checkpointer):
    """Saves to and loads from `.pth` files, and keeps the name of the newest in `last_checkpoint`.

    A file holds `{"model": state dict, <name>: state dict of each checkpointable, "iteration": ...}`; only tensors
    and plain data, so that no code runs when it is loaded. Files appear whole or not at all.

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

        Parameters that are missing in the file, unknown to the model or of another shape are left alone, and listed
        in a warning.

        Returns:
            What else the file holds, such as `iteration`. An empty path loads nothing.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a checkpoint, or one of another architecture.
        """
        if path:
            path = self.path_manager.get_local_path(path)
            if not os.path.isfile(path):
                raise FileNotFoundError(f"no such checkpoint: {path}")
        self._path = path
        return super().load(path, *args, **kwargs)

    def _load_file(self, f: str) -> dict[str, Any]:
        """Read a file into `{"model": state dict, ...}`, on the CPU."""
        try:
            content = torch.load(f, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{f} is not a checkpoint that PyTorch can load safely: {reason}") from error
        return self._convert(content)

    def _convert(self, content: Any) -> dict[str, Any]:
        """Bring what a file holds into the form `{"model": state dict, ...}`."""
        if isinstance(content, dict) and "model" in content:
            return content
        if isinstance(content, dict) and content and all(torch.is_tensor(value) for value in content.values()):
            return {"model": content}
        raise ValueError(f'{self._path} is no checkpoint of a model: it has no "model"')

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        keys_in_file = set(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        mismatched = {key for key, *_ in incompatible.incorrect_shapes}
        matched = keys_in_file - set(incompatible.unexpected_keys) - mismatched
        model_size = len(self.model.state_dict())
        # A backbone alone matches all of its file; another number of classes leaves most of both. Less is a mistake.
        if 2 * len(matched) < min(len(keys_in_file), model_size):
            raise ValueError(
                f"{self._path} is of another architecture: {len(matched)} of its {len(keys_in_file)} keys fit the "
                f"{model_size} of this model{_examples(incompatible)}"
            )
        return incompatible


def _examples(incompatible: _IncompatibleKeys) -> str:
    shapes = [
        f"{key} {tuple(theirs)} instead of {tuple(ours)}" for key, theirs, ours in incompatible.incorrect_shapes
    ]
    groups = {
        "unknown": incompatible.unexpected_keys,
        "missing": incompatible.missing_keys,
        "of another shape": shapes,
    }
    return "".join(f"; {what}: {', '.join(keys[:_KEYS_SHOWN])}, ..." for what, keys in groups.items() if keys)


@contextmanager
def _replacing(path: Path, mode: str) -> Iterator[IO[Any]]:
    """A file to write that takes the place of `path` once it is complete, and never if writing it fails."""
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with unfinished.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
