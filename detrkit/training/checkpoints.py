"""Checkpoints that a kill or a full disk cannot damage, and the search for the newest valid one."""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import hooks
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from detrkit.runtime.files import LAST_CHECKPOINT, UNFINISHED, atomic_write, write_if_changed
from detrkit.runtime.logs import terminal_quiet
from detrkit.weights import load_state

logger = logging.getLogger(__name__)

# The names that pickles of NumPy arrays use.
ARRAYS = {
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "_codecs": {"encode"},
    "collections": {"OrderedDict"},
}


BACKBONE = "backbone."  # begins the names of its tensors


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in ARRAYS.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def read_safetensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, on the CPU.

    Raises:
        ValueError: it is another or a damaged file, or the package safetensors is not installed.
        OSError: it cannot be read.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(f"{path} needs safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def download(checkpoint: str) -> str:
    """The local file of a URL, or of another name that detectron2 reads; downloaded if it is not in the cache.

    Raises:
        OSError: the download failed; the message has what to do.
    """
    try:
        return PathManager.get_local_path(checkpoint)
    except FileNotFoundError:  # of weights in a package, with its name
        raise
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise OSError(
            f"cannot download {checkpoint} ({reason}): fetch it on another machine, and give the file by "
            "train.init_checkpoint=FILE; train.init_checkpoint= begins with random weights, which takes much longer"
        ) from error


class SafeCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer that replaces files in one step, runs no code from files, and reads `.safetensors`.

    detectron2's unpickles any `.pkl`. Only the main process writes. Incomplete files of a killed run in `save_dir` are
    deleted at the next save.

    Attributes:
        last_iteration: last iteration of the training, once known. detectron2 gives the best model of the last
            evaluation a number one higher, and a longer training that resumes from it would leave out an iteration.
    """

    last_iteration: int | None = None
    _source = ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint like DetectionCheckpointer.

        Raises:
            ValueError: a pickle contains other objects than arrays.
        """
        self._source = str(path)
        if str(path).endswith(".pkl"):
            with open(download(str(path)), "rb") as file:
                try:
                    _ArraysOnly(file, encoding="latin1").load()
                except Exception as error:  # a damaged file may raise anything
                    raise ValueError(f"{path} wants to run {error}, or is damaged: refused") from error
        return super().load(path, *args, **kwargs)

    def _load_file(self, f: str) -> dict[str, Any]:
        if converted := load_state(f, self.model.state_dict()):
            state, report = converted
            self.logger.info("Converted %s", report.line())
            return {"model": state}
        if not f.endswith(".safetensors"):
            return super()._load_file(f)
        state = read_safetensors(f)
        consume_prefix_in_state_dict_if_present(state, "module.")
        return {"model": state}

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Log what was not loaded: a warning, unless the file is a backbone's and gave all of its tensors."""
        state = self.model.state_dict()
        if not _has_backbone_alone(state, incompatible):
            super()._log_incompatible_keys(incompatible)
            return
        count = sum(name.startswith(BACKBONE) for name in state)
        self.logger.info(
            "Initial weights of the backbone from %s: all of its %d tensors. The other %d tensors of the detector "
            "begin with random values, as intended",
            self._source,
            count,
            len(state) - count,
        )
        self.logger.debug("%s", incompatible)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `<name>.pth` with the states and `kwargs`, and name it in `last_checkpoint`.

        Raises:
            OSError: it cannot be written; no file has changed.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if self.last_iteration is not None and "iteration" in kwargs:
            kwargs["iteration"] = min(kwargs["iteration"], self.last_iteration)
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        path = Path(self.save_dir, f"{name}.pth")
        for leftover in path.parent.glob(f"*{UNFINISHED}"):
            leftover.unlink(missing_ok=True)
        with atomic_write(path) as file:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, file)
        self.logger.info("Saved checkpoint %s", path)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name a file of `save_dir` in `last_checkpoint`."""
        with atomic_write(Path(self.save_dir, LAST_CHECKPOINT)) as file:
            file.write(last_filename_basename.encode())


def _has_backbone_alone(state: Mapping[str, Tensor], incompatible: Any) -> bool:
    """Whether a file had all tensors of the backbone, and none of the rest of the detector.

    Args:
        state: of the model.
        incompatible: `missing_keys` and `incorrect_shapes` of loading the file. A parameter that is shared may be
            missing under one of its names only.
    """
    missing = set(incompatible.missing_keys)
    if incompatible.incorrect_shapes or not missing or any(name.startswith(BACKBONE) for name in missing):
        return False
    initial = {state[name].data_ptr() for name in missing if name in state}
    others = [tensor for name, tensor in state.items() if not name.startswith(BACKBONE)]
    return len(others) < len(state) and all(tensor.data_ptr() in initial for tensor in others)


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint to resume from.

    Attributes:
        name: file name.
        iteration: the last iteration that is done.
        hooks: states of the trainer's hooks.
        remark: why it is not the one named in `last_checkpoint`; "" if it is.
    """

    name: str
    iteration: int
    hooks: dict[str, Any]
    remark: str


def newest_checkpoint(folder: str | os.PathLike) -> ResumePoint | None:
    """The checkpoint named in `last_checkpoint`; if it is damaged, the newest valid one.

    Nothing is changed there. Every process of a run calls it; the main process searches.

    Returns:
        None if the folder has no checkpoint.

    Raises:
        ValueError: it has checkpoints, and all are damaged.
    """
    found: Any = None
    if comm.is_main_process():
        try:
            found = find_checkpoint(Path(folder))
        except (ValueError, OSError) as error:
            found = error
    found = comm.all_gather(found)[0]
    if isinstance(found, Exception):
        raise found
    return found


def find_checkpoint(folder: Path) -> ResumePoint | None:
    """`newest_checkpoint` for one process."""
    names = [path.name for path in sorted(folder.glob("*.pth"), key=lambda path: -path.stat().st_mtime)]
    last = folder / LAST_CHECKPOINT
    named = last.read_text(encoding="utf-8", errors="replace").strip() if last.is_file() else ""
    if not names and not named:
        return None
    problems = {named: "is not there"} if named else {}
    # Only files of this folder are used, whatever `last_checkpoint` names.
    for name in sorted(names, key=lambda name: name != named):
        content = _whole_content(folder / name)
        if content is None:
            problems[name] = "is damaged or not of a training"
            continue
        remark = ""
        if name != named:
            why = f"names {named!r}, which {problems[named]}" if named else "is missing or empty"
            remark = f"{LAST_CHECKPOINT} {why}: resuming from {name}, the newest whole checkpoint"
        return ResumePoint(name, content["iteration"], content.get("trainer", {}).get("hooks", {}), remark)
    seen = ", ".join(f"{name!r} {problem}" for name, problem in problems.items())
    raise ValueError(
        f"no checkpoint in {folder} can be resumed from: {seen}; --overwrite in place of --resume begins anew, and "
        "deletes what is there"
    )


def name_in_last_checkpoint(folder: str | os.PathLike, point: ResumePoint) -> None:
    """Correct `last_checkpoint`, which detectron2's checkpointers resume from. Every process of a run calls it."""
    if comm.is_main_process():
        write_if_changed(Path(folder, LAST_CHECKPOINT), point.name.encode())
    comm.synchronize()


def _whole_content(path: Path) -> dict[str, Any] | None:
    """Content of a checkpoint of a training, with memory-mapped tensors; None if it is damaged or another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)  # PyTorch 2.1 needs a str
    except Exception:  # a damaged file may raise anything
        return None
    is_training = isinstance(content, dict) and "model" in content and isinstance(content.get("iteration"), int)
    return content if is_training else None


class BestCheckpointer(hooks.BestCheckpointer):
    """detectron2's `BestCheckpointer`, with the best metric so far in the checkpoints; it logs to the file only."""

    def after_step(self) -> None:
        with terminal_quiet():
            super().after_step()

    def after_train(self) -> None:
        with terminal_quiet():
            super().after_train()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.best_metric is None else {"best": float(self.best_metric), "iteration": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["best"], state_dict.get("iteration")
