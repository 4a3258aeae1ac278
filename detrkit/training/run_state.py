"""State of a training that detectron2's trainers do not save: data position, random generators, smoothed metrics."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from .checkpoints import ResumePoint
from .randomness import random_states, set_random_states

logger = logging.getLogger(__name__)

WINDOW = 20  # iterations over which writers take medians
TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")  # metrics that start anew in each process


class RunState(HookBase):
    """A hook that saves in each checkpoint what an exact resume needs besides weights, optimizer and trainer.

    For each process: data position and random states. For the main process: the values that metrics are smoothed over.

    An iteration may be saved twice: before and after evaluation. A checkpoint from before evaluation is marked, and a
    run that resumes from it evaluates first (`Trainer.unfinished_iteration`).

    Register `before_checkpoint()` before the hook that saves, and this hook after evaluation and the metrics' writer.

    Args:
        loader: the training data. Its position is saved if it has `state_dict()` and either `load_state_dicts(states)`,
            like `ResumableLoader`, or `load_state_dict(state)` for one process; else the data start over on resume.
        saves_at: whether a checkpoint may be saved after an iteration.
        facts: plain data to save as well.
        gather: called by every process before the state is collected, such as to gather a sharded optimizer's state.
    """

    def __init__(
        self,
        loader: Any,
        saves_at: Callable[[int], bool],
        facts: dict[str, Any],
        gather: Callable[[], None] = lambda: None,
    ):
        self._loader, self._saves_at, self._facts, self._gather = loader, saves_at, facts, gather
        self._complete = True
        self._processes: list[dict[str, Any]] = []
        self._loaded: dict[str, Any] | None = None

    def before_checkpoint(self) -> HookBase:
        """The hook to register before the one that saves."""
        return BeforeCheckpoint(self)

    def collect(self, complete: bool) -> None:
        """Gather the states of all processes for the next checkpoints. Every process calls it.

        Args:
            complete: whether all hooks of this iteration have run.
        """
        self._complete = complete
        self._gather()
        position = self._loader.state_dict() if hasattr(self._loader, "state_dict") else None
        self._processes = comm.gather({"data": position, "random": random_states()})

    def after_step(self) -> None:
        if self._saves_at(self.trainer.iter):
            self.collect(complete=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "complete": self._complete,
            "processes": self._processes,
            "scalars": self._scalars(),
            "facts": self._facts,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def before_train(self) -> None:
        """Restore the loaded state, after the other hooks have started."""
        if self._loaded is None:
            return
        state, self._loaded = self._loaded, None
        remarks = self._resume_data([process["data"] for process in state["processes"]])
        count, rank = len(state["processes"]), comm.get_rank()
        if rank < count:
            set_random_states(state["processes"][rank]["random"])
        if comm.is_main_process():
            self._restore_scalars(state["scalars"], state["complete"])
            for remark in filter(None, [remarks, self._batch_size(state["facts"])]):
                logger.warning("Not as before: %s", remark)
        if not state["complete"]:
            self.trainer.unfinished_iteration = self.trainer.start_iter - 1

    def _resume_data(self, positions: list[Any]) -> str:
        if positions[0] is None or not hasattr(self._loader, "state_dict"):
            return "this loader does not know its position in the data: they start over"
        if hasattr(self._loader, "load_state_dicts"):
            return self._loader.load_state_dicts(positions)
        if len(positions) != comm.get_world_size():
            return f"{comm.get_world_size()} process(es) now, {len(positions)} before: the data start over"
        self._loader.load_state_dict(positions[comm.get_rank()])
        return ""

    def _batch_size(self, before: dict[str, Any]) -> str:
        now, was = self._facts.get("batch_size"), before.get("batch_size")
        if now == was:
            return ""
        return f"batches of {now} images now, {was} before: iteration count and data position are kept"

    def _scalars(self) -> dict[str, Any]:
        if not comm.is_main_process():
            return {}
        storage = self.trainer.storage
        iteration = min(storage.iter, self.trainer.max_iter - 1)
        hints = storage.smoothing_hints()
        newest = {name: at for name, (_, at) in storage.latest().items()}
        windows = {name: WINDOW if smoothed else 1 for name, smoothed in hints.items()}
        return {
            name: [hints[name], [[float(value), at] for value, at in history.values()[-windows[name] :]]]
            for name, history in storage.histories().items()
            if newest[name] == iteration and name not in TIMES
        }

    def _restore_scalars(self, scalars: dict[str, Any], complete: bool) -> None:
        for name, (smoothed, values) in scalars.items():
            if complete and not smoothed:  # already in metrics.json
                continue
            for value, iteration in values:
                self.trainer.storage.put_scalar(name, value, smoothing_hint=smoothed, cur_iter=iteration)


class BeforeCheckpoint(HookBase):
    """A hook that collects the state before a checkpoint is saved."""

    def __init__(self, state: RunState):
        self._state = state

    def after_step(self) -> None:
        if self._state._saves_at(self.trainer.iter):
            self._state.collect(complete=False)


def cut_metrics(path: str | os.PathLike, point: ResumePoint | None, *, resumes: bool, max_iter: int) -> None:
    """Remove incomplete lines, and those of iterations that will be repeated, from the end of `metrics.json`.

    The evaluation at the end of an earlier, shorter run stays. If the process is killed meanwhile, the file is valid.

    Args:
        point: the checkpoint to resume from; None to start from iteration 0.
        resumes: whether the lines belong to the same run, which repeats all of them if it starts from iteration 0.
        max_iter: number of iterations of the run.
    """
    path = Path(path)
    if not path.is_file():
        return
    state = point.hooks.get(RunState.__qualname__, {}) if point else {}
    first = point.iteration + state.get("complete", True) if point else 0
    ended_at = state.get("facts", {}).get("max_iter", max_iter)
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    while resumes and end:
        begin = content.rfind(b"\n", 0, end - 1) + 1
        try:
            row = json.loads(content[begin:end])
            is_end = ended_at != max_iter and row["iteration"] == ended_at and "total_loss" not in row
            if row["iteration"] < first or is_end:
                break
        except (ValueError, KeyError, TypeError):
            logger.warning("%s has a line that is not one of metrics: it is removed", path)
        end = begin
    if end < len(content):
        os.truncate(path, end)
