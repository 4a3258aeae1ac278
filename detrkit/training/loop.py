"""The training loop: one ordered list of hooks around detectron2's iterations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from detectron2.config import instantiate
from detectron2.engine import HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detrex.modeling import ema
from omegaconf import DictConfig

from detrkit.config.changes import flat_config, without_harmless
from detrkit.runtime.program import subnormals_flushed
from detrkit.runtime.threads import number_of_threads_kept
from detrkit.weights import SETTINGS

from .backbone_stages import FrozenBatchNorms, frozen_batch_norms
from .builders import build_loader, build_model, build_optimizer, build_trainer
from .checkpoints import ResumePoint, SafeCheckpointer, name_in_last_checkpoint, newest_checkpoint
from .class_heads import class_heads_matched
from .completed import completed_training
from .config_values import check_values
from .data_workers import sigchld_restored
from .early_stopping import StoppedEarly, best_metric, early_stopping
from .evaluation import Evaluations, build_evaluation
from .folder_lock import output_folder_locked
from .hooks import EvaluationLine, FirstLine, MetricsWriter, best_checkpointer, periodic_checkpointer, saves_at
from .host_memory import ReturnFreedMemory
from .live_line import LiveLine
from .output_folder import claim_output_folder
from .preflight import check_data, known_classes, match_training_classes
from .run_state import RunState, cut_metrics
from .session import (
    check_exists,
    check_iterations,
    check_unchanged,
    join_torchrun,
    log_results,
    logs_closed_on_exit,
    prepare,
    saved_facts,
)
from .sharding import gather_shards
from .stopping import StopEarly
from .watchdog import Watchdog

logger = logging.getLogger("detectron2.training")


class Report(Protocol):
    """A page about the training, such as `detrkit.reports.training_report.TrainingReport`.

    Attributes:
        sample: an evaluator that keeps some detections of each evaluation.
        hook: writes the page after an evaluation; for the main process.
    """

    sample: DatasetEvaluator
    hook: HookBase


def train(
    cfg: DictConfig,
    *,
    resume: bool | Literal["auto"] = False,
    allow_changes: bool = False,
    overwrite: bool = False,
    config_file: str = "",
    overrides: Sequence[str] = (),
    build_report: Callable[[DictConfig], Report | None] = lambda cfg: None,
) -> dict[str, Any]:
    """Train the detector of a config, evaluating and saving in `cfg.train.output_dir` on the way.

    Every process of a distributed run calls it. In a thread other than the main one, signals are not handled.

    Args:
        cfg: a config as `load_config` returns it; it is completed in place.
        resume: True continues from the newest checkpoint of the output folder, which must have one; "auto" begins a
            training if there is none.
        allow_changes: resume even if the training began with another config.
        overwrite: delete the files of an earlier training in the output folder.
        config_file: where the config came from, for the log.
        overrides: `key=value` that the user gave; settings that belong to the weights do not replace them.
        build_report: makes the page about the training; returns None for no page.

    Returns:
        The results of the last evaluation, `{task: metrics}`; {} without an evaluator. Resuming a complete training
        changes nothing, and returns those in its metrics.json.

    Raises:
        ValueError, OSError: config, data or checkpoint cannot be used, or the folder holds another training, or one
            that is running.
        ValueError: after a complete training, if an evaluation failed. Checkpoints and metrics.json are kept.
        FloatingPointError: a loss or a gradient is not finite.
        Interrupted: SIGINT or SIGTERM ended the training, which saved a checkpoint.
    """
    with subnormals_flushed(), logs_closed_on_exit(), number_of_threads_kept():
        join_torchrun()
        check_values(cfg, config_file)
        with output_folder_locked(cfg.train.output_dir):
            config_as_given = flat_config(cfg)
            point = checkpoint_to_resume(cfg, config_as_given, allow_changes) if resume else None
            if point and (completed := completed_training(cfg, point)):
                return completed.report()
            if point is None:
                check_exists(cfg.train.init_checkpoint)
            check_data(cfg, ("train", "test"))
            claim_output_folder(cfg.train.output_dir, resume=resume, overwrite=overwrite)
            checkpoint = cfg.train.init_checkpoint
            if point:
                name_in_last_checkpoint(cfg.train.output_dir, point)
                checkpoint = str(Path(cfg.train.output_dir, point.name))
            weights = prepare(cfg, checkpoint, config_file=config_file, overrides=overrides, training=True)
            if remark := remark_on(cfg, point) if resume else "":
                logger.warning(remark)
            if point and not allow_changes:  # config.yaml may have been given, and the original config the next time
                config_as_given = saved_facts(point).get("config", config_as_given)
            facts = {"config": config_as_given, "complete_config": without_harmless(flat_config(cfg))}
            facts[SETTINGS] = weights.kept_settings() if weights else {}
            evaluations = run_iterations(cfg, point, bool(resume), facts, build_report(cfg))
            return finish(cfg, evaluations)


def checkpoint_to_resume(cfg: DictConfig, config: Mapping[str, str], allow_changes: bool) -> ResumePoint | None:
    """The newest checkpoint of the output folder; None if there is none.

    Raises:
        ValueError: it is of a training with another config, and changes are not allowed; or it has more iterations than
            the config.
    """
    point = newest_checkpoint(cfg.train.output_dir)
    if point:
        check_iterations(point, cfg.train.max_iter)
    if point and not allow_changes:
        check_unchanged(point, config)
    return point


def remark_on(cfg: DictConfig, point: ResumePoint | None) -> str:
    """What the user may not expect of resuming from `point`; "" if there is nothing."""
    if point is None:
        return f"There is no checkpoint in {cfg.train.output_dir} to resume from: starting anew"
    before, now = saved_facts(point).get("max_iter"), cfg.train.max_iter
    shorter = before is not None and now < before
    change = f"train.max_iter was {before}, and is {now} now: the schedule of the learning rate is shorter too"
    return ". ".join(filter(None, [point.remark, change if shorter else ""]))


def finish(cfg: DictConfig, evaluations: Evaluations) -> dict[str, Any]:
    """Log the results of a training, and return those of its last evaluation.

    Raises:
        ValueError: an evaluation failed.
    """
    if comm.is_main_process():
        log_results(cfg, evaluations.results)
    evaluations.raise_failures(cfg.train.output_dir)
    return evaluations.results


def schedule_facts(cfg: DictConfig) -> dict[str, int | None]:
    """Batch size of an optimizer step (None if the data loader does not say it) and number of iterations."""
    batch_size = cfg.dataloader.train.get("total_batch_size")
    images = batch_size and batch_size * cfg.train.get("accumulate", 1)
    return {"batch_size": images, "max_iter": cfg.train.max_iter}


def run_iterations(
    cfg: DictConfig, point: ResumePoint | None, resume: bool, facts: dict[str, Any], report: Report | None
) -> Evaluations:
    """Build everything, register the hooks in their order, and run the iterations.

    Args:
        point: the checkpoint to resume from; None to start a training.
        resume: keep the lines of metrics.json up to the checkpoint; else start the file anew.
        facts: plain data for the checkpoints.
        report: a page about the training.
    """
    classes = match_training_classes(cfg, point)  # by name: training data, test data, model outputs
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    evaluations = Evaluations(build_evaluation(cfg, model, [report.sample] if report else []))
    loader = build_loader(cfg, "train")
    watchdog = Watchdog(cfg.train.get("hang_seconds", 0))
    trainer = build_trainer(cfg, model, loader, optimizer, watchdog.report_phase)
    checkpointer = SafeCheckpointer(
        model,
        cfg.train.output_dir,
        trainer=trainer,
        optimizer=optimizer,  # for other readers of the file; its tensors are stored once
        **ema.may_get_ema_checkpointer(cfg, model),
    )
    checkpointer.last_iteration = cfg.train.max_iter - 1
    is_main = comm.is_main_process()
    if is_main:
        cut_metrics(Path(cfg.train.output_dir, "metrics.json"), point, resumes=resume, max_iter=cfg.train.max_iter)
    facts = {**facts, **schedule_facts(cfg), "classes": classes.plain() if classes else None}
    state = RunState(loader, lambda iteration: saves_at(cfg, iteration), facts, lambda: gather_shards(optimizer))
    stop = StopEarly(checkpointer, state, loader)
    best = best_checkpointer(cfg, checkpointer) if is_main else None
    trainer.register_hooks(
        [
            FrozenBatchNorms(frozen_batch_norms(cfg, model)),  # keep the statistics that train.freeze names
            hooks.IterationTimer(),  # seconds of each iteration
            FirstLine(cfg.train.log_period) if is_main else None,  # log that iterations have begun
            ema.EMAHook(cfg, model) if cfg.train.model_ema.enabled else None,  # update the averaged weights
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),  # set the learning rate of the next iteration
            state.before_checkpoint(),  # collect random states and data position for a checkpoint
            periodic_checkpointer(cfg, checkpointer) if is_main else None,  # save before evaluation, which may fail
            hooks.EvalHook(cfg.train.eval_period, evaluations),  # evaluate
            report.hook if report and is_main else None,  # update report.html, and record its metrics
            MetricsWriter(cfg) if is_main else None,  # write the metrics recorded by the hooks above
            state,  # collect again for the checkpoints below, as evaluation has drawn random numbers
            best,  # save model_best.pth if its metric is the highest so far
            EvaluationLine(evaluations, best, best_metric(cfg)) if is_main else None,  # log a line for an evaluation
            early_stopping(cfg, evaluations, checkpointer, state),  # end if the metric no longer improves
            stop,  # on Ctrl-C or SIGTERM: save a checkpoint and stop
            ReturnFreedMemory() if cfg.train.device == "cpu" else None,  # keep the process from growing
            LiveLine() if is_main else None,  # show progress on the terminal
        ]
    )
    start = "" if point else cfg.train.init_checkpoint
    with class_heads_matched(cfg, model, start, known_classes(start, classes, assume=True), classes):
        checkpointer.resume_or_load(start, resume=point is not None)
    with watchdog.watching(), stop.handling_signals(), sigchld_restored(), suppress(StoppedEarly):
        trainer.train(point.iteration + 1 if point else 0, cfg.train.max_iter)
    return evaluations
