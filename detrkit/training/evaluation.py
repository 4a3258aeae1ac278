"""Evaluations that fail in one piece: in all processes of a run, after everything that these do together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.utils import comm
from torch import nn

logger = logging.getLogger(__name__)


def evaluate_together(
    model: nn.Module, loader: Iterable[Any], evaluators: Sequence[DatasetEvaluator]
) -> tuple[dict[str, Any], Exception | None]:
    """detectron2's `inference_on_dataset`, with what went wrong as a result instead of an exception.

    An error in one process would leave the others waiting for it in a collective operation. Here the processes learn of
    it where they meet, and the evaluators compute no results from a part of the images.

    Returns:
        The results, {} on all but the main process; and the error. It is this process's own, or a ValueError that
        repeats another process's; None if there was none in any process.
    """
    errors: list[Exception] = []
    results = inference_on_dataset(_Model(model, errors), _Loader(loader, errors), _Evaluators(evaluators, errors))
    messages = comm.all_gather(_one_line(errors[0]) if errors else None)
    if errors:
        return {}, errors[0]
    for rank, message in enumerate(messages):
        if message is not None:
            return {}, ValueError(f"process {rank}: {message}")
    return dict(results), None


class Evaluations:
    """A training's evaluations: one that fails is logged, and the training goes on.

    Args:
        evaluate: evaluates the model; every process of a run calls it and, if it raises, all of them get an error.

    Attributes:
        results: of the last evaluation; {} if it failed.
        failures: a line for each evaluation that failed.
    """

    def __init__(self, evaluate: Callable[[], Mapping[str, Any]]):
        self._evaluate = evaluate
        self.results: dict[str, Any] = {}
        self.failures: list[str] = []

    def __call__(self) -> Mapping[str, Any]:
        self.results = {}
        try:
            self.results = dict(self._evaluate())
        except Exception as error:  # whatever it was: the training is worth more than this evaluation
            self.failures.append(_one_line(error))
            logger.error("The evaluation failed, and the training goes on: %s", self.failures[-1])
            logger.debug("Where it failed:", exc_info=error)
        return self.results

    def raise_failures(self, folder: str) -> None:
        """Raise a ValueError if an evaluation failed; `folder` is where the checkpoints are, for the message."""
        if self.failures:
            count = "an evaluation" if len(self.failures) == 1 else f"{len(self.failures)} evaluations"
            raise ValueError(f"{count} failed: {self.failures[-1]}; the training is complete, see {folder}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Model(nn.Module):
    """Calls a model, unless there was an error; one that it raises is kept, and there are no outputs."""

    def __init__(self, model: nn.Module, errors: list[Exception]):
        super().__init__()
        self.model, self.errors = model, errors
        self.training = model.training

    def forward(self, inputs: Any) -> Any:
        try:
            return self.model(inputs)
        except Exception as error:
            self.errors.append(error)
            return []


class _Loader:
    """The batches up to the first error."""

    def __init__(self, loader: Iterable[Any], errors: list[Exception]):
        self._loader, self._errors = loader, errors

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        try:
            for batch in self._loader:
                yield batch
                if self._errors:
                    return
        except Exception as error:
            self._errors.append(error)


class _Evaluators(DatasetEvaluators):
    """Evaluators that are not called any more once there was an error in any process."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator], errors: list[Exception]):
        super().__init__(list(evaluators))
        self._errors = errors

    def process(self, inputs: Any, outputs: Any) -> None:
        if not self._errors:
            self._keep_error(lambda: super(_Evaluators, self).process(inputs, outputs))

    def evaluate(self) -> Mapping[str, Any]:
        if any(comm.all_gather(bool(self._errors))):
            return {}
        return self._keep_error(super().evaluate) or {}

    def _keep_error(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            self._errors.append(error)
            return None
