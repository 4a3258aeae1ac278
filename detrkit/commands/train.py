"""Train or evaluate a detector.

    align-detr train --config-file CONFIG [--resume | --eval-only] [--num-gpus N] [key=value ...]
    align-detr train --data FOLDER [key=value ...]

Runs on the embedded engine as on detectron2 and detrex, on CPUs and GPUs, in one process or several, by `--num-gpus`
or under torchrun. `--help` lists the options; `key=value` changes the config, such as `train.max_iter=100`.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    HookBase,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    hooks,
    launch,
)
from detectron2.engine.defaults import default_writers
from detectron2.evaluation import DatasetEvaluator, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from detectron2.utils.logger import setup_logger
from detrex.modeling import ema
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from align_detr._platform import describe
from detrkit.commands import program
from detrkit.commands.command_line import errors_in_one_line, load_config, parse_arguments, subnormals_flushed
from detrkit.commands.train_folder import add_folder_options, check_folder_options, config_of_folder
from detrkit.config.catalogue import find_config
from detrkit.config.load import call_parameters
from detrkit.datasets.annotations import annotations_explained
from detrkit.datasets.classes import dataset_names
from detrkit.datasets.mapper import with_rgb_images
from detrkit.datasets.registration import annotation_file_of, saved_registrations
from detrkit.datasets.results import restore_original_ids
from detrkit.reports.training_report import DetectionSample, TrainingReport, is_wanted
from detrkit.runtime.allocation import keep_freed_memory
from detrkit.runtime.device import resolve_device
from detrkit.runtime.precision import pays
from detrkit.training import (
    BestCheckpointer,
    Evaluations,
    ResumePoint,
    RunState,
    SafeCheckpointer,
    Trainer,
    Watchdog,
    changes,
    class_heads_matched,
    cut_metrics,
    described,
    evaluate_together,
    newest_whole,
    protect_workers,
    resumable_loader,
    sigchld_restored,
)
from detrkit.training.live_line import LiveLine
from detrkit.training.loading import WholeModelCheckpointer
from detrkit.training.preflight import check_images, known_classes, match_evaluation, match_training
from detrkit.weights import SETTINGS, Prepared, prepare_config

logger = logging.getLogger("detectron2.train_net")

BEST_METRIC = "bbox/AP"
FAST_DEV_RUN = dict(max_iter=20, eval_period=10, log_period=1)
SAME_SIGNAL = 1.0  # seconds
NO_CLIPPING = dict(max_norm=math.inf)  # but for a look at the norm
AMP_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def run(args: argparse.Namespace) -> None:
    """What each process of a run does."""
    with errors_in_one_line(), subnormals_flushed():
        join_torchrun()
        if args.data:
            args.config_file, args.opts = config_of_folder(args), []
        cfg = load_config(args.config_file, args.opts)
        began_with = described(cfg)
        point = newest_whole(cfg.train.output_dir) if args.resume else None
        if point and not (args.eval_only or args.allow_changes):
            check_unchanged(point, began_with)
        weights = prepare(cfg, args, point)
        if point and point.remark:
            logger.warning(point.remark)
        if args.eval_only:
            results = evaluate_checkpoint(cfg, point)
        else:
            evaluations = train(cfg, args, point, began_with, weights)
            results = evaluations.results
        if comm.is_main_process():
            report(cfg, results)
        if not args.eval_only:
            evaluations.raise_failures(cfg.train.output_dir)


def join_torchrun() -> None:
    """Set up the processes that torchrun started, where `launch` does not know of it, as detectron2's does not."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def prepare(cfg: DictConfig, args: argparse.Namespace, point: ResumePoint | None) -> Prepared | None:
    """Complete the config, open the log, and tell what runs on what.

    Returns:
        What is known of the checkpoint that the run begins with.
    """
    for key in ("train", "model", "dataloader", "optimizer", "lr_multiplier"):
        if key not in cfg:
            raise ValueError(f"{args.config_file} has no {key}, so it is not the config of a training")
    cfg.train.device = resolve_device(cfg.train.device)
    if "device" in call_parameters(cfg.model.get("_target_")):
        cfg.model.device = cfg.train.device
    if cfg.train.amp.enabled and amp_name(cfg) not in AMP_TYPES:
        raise ValueError(f"train.amp.dtype={cfg.train.amp.dtype} is not one of {', '.join(AMP_TYPES)}")
    if cfg.train.fast_dev_run.enabled:
        cfg.train.update(FAST_DEV_RUN)
    if not args.resume:
        check_exists(cfg.train.init_checkpoint)
    evaluator = cfg.dataloader.get("evaluator", {})
    if evaluator.get("output_dir", "") is None:
        evaluator.output_dir = cfg.train.output_dir

    # For the config.yaml in the output folder, which is no program that could register them.
    names = [name for split in ("train", "test") for name in dataset_names(cfg, split)]
    if datasets := saved_registrations(names):
        cfg.datasets = datasets

    checkpoint = str(Path(cfg.train.output_dir, point.name)) if point else cfg.train.init_checkpoint
    weights = prepare_config(cfg, checkpoint, overrides=args.opts, for_training=not args.eval_only)

    args.config_file = str(find_config(args.config_file))  # detectron2 copies it to the log
    default_setup(cfg, args)
    for name in ("detrex", "align_detr", "detrkit", "projects"):
        setup_logger(cfg.train.output_dir, comm.get_rank(), name=name)
    logger.info(describe())
    logger.info("PyTorch %s on %s, %d process(es)", torch.__version__, device_name(cfg), comm.get_world_size())
    if cfg.train.amp.enabled and amp_type(cfg) is None:
        logger.warning("This CPU has no units for %s, so train.amp goes by float32, which is faster", amp_name(cfg))
    if weights:
        weights.log()
    return weights


def check_unchanged(point: ResumePoint, config: Mapping[str, str]) -> None:
    """Raise ValueError if the checkpoint is of a training with another config."""
    before = point.hooks.get(RunState.__qualname__, {}).get("facts", {}).get("config")
    differences = changes(before, config) if before else []
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"{point.name} is of a training with another config, so it is not resumed: "
            f"{', '.join(differences[:3])}{more}; "
            "--allow-changes goes on all the same, another train.output_dir starts anew"
        )


def check_exists(checkpoint: str) -> None:
    """Raise FileNotFoundError for a file that is not there. What a URL leads to is found out on loading."""
    if checkpoint and "://" not in checkpoint and not Path(checkpoint).is_file():
        raise FileNotFoundError(f"train.init_checkpoint={checkpoint}: no such file")


def device_name(cfg: DictConfig) -> str:
    """Such as "cuda (NVIDIA A100)" or "cpu (8 threads)"."""
    device = torch.device(cfg.train.device)
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def amp_name(cfg: DictConfig) -> str:
    return cfg.train.amp.get("dtype", "float16")


def amp_type(cfg: DictConfig) -> torch.dtype | None:
    """The precision that `train.amp` asks for; None for float32: it is off, or would be slower on this CPU."""
    dtype = AMP_TYPES[amp_name(cfg)] if cfg.train.amp.enabled else None
    return dtype if dtype and pays(dtype, cfg.train.device) else None


def autocast_of(cfg: DictConfig) -> AbstractContextManager:
    """The precision that `train.amp` asks for, for what is not a training step."""
    dtype = amp_type(cfg)
    # PyTorch 2.1 minds float16 on a CPU even where it is switched off.
    return torch.autocast(torch.device(cfg.train.device).type, dtype) if dtype else nullcontext()


def build_model(cfg: DictConfig) -> nn.Module:
    """The model on its device, with an empty moving average if the config wants one."""
    model = instantiate(cfg.model).to(cfg.train.device)
    ema.may_build_model_ema(cfg, model)
    if cfg.train.get("compile", False):
        compile_parts(model)
    size = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.debug("Model:\n%s", model)
    logger.info("%s: %.2f M parameters, %.2f M of them trained", type(model).__name__, size / 1e6, trained / 1e6)
    return model


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """`cfg.optimizer` over the parameters of `model`, in one kernel for all where PyTorch has one for the device."""
    cfg.optimizer.params.model = model
    optimizer = None
    if "fused" in call_parameters(cfg.optimizer.get("_target_")) and "fused" not in cfg.optimizer:
        with suppress(RuntimeError):  # not for this device, or not yet in this PyTorch
            optimizer = instantiate({**cfg.optimizer, "fused": True})
    optimizer = optimizer or instantiate(cfg.optimizer)
    for group in optimizer.param_groups:  # what older PyTorch keeps as it was given, and checkpoints must not hold
        group.update({name: tuple(value) for name, value in group.items() if isinstance(value, ListConfig)})
    return optimizer


def compile_parts(model: nn.Module) -> None:
    """Compile, in place, what maps tensors to tensors; reading the inputs and matching stay in Python."""
    transformer = getattr(model, "transformer", None)
    for owner, name in ((model, "backbone"), (model, "neck"), (transformer, "encoder"), (transformer, "decoder")):
        part = getattr(owner, name, None)
        if part is not None:
            part.forward = torch.compile(part.forward)  # wrapping the module would rename its parameters


def build_loader(cfg: DictConfig, split: str) -> Iterable[Any]:
    """`cfg.dataloader.train` or `.test`, after a look at its dataset's size and classes."""
    node = cfg.dataloader[split]
    source = node.get("dataset")
    if isinstance(source, DictConfig) and "names" in source:
        names = [source.names] if isinstance(source.names, str) else list(source.names)
        with annotations_explained(names):
            dataset = instantiate(source)
        logger.info("%s data: %s, %d images", split, " + ".join(names), len(dataset))
        check_classes(cfg, names)
        if split == "test":
            check_images(" + ".join(names), dataset)
        if split == "train" and (loader := resumable_loader(node, dataset)):
            return loader
        source._target_ = lambda **_: dataset  # what has been read is not read again: COCO takes half a minute
    if "mapper" in node:
        node = {**node, "mapper": with_rgb_images(instantiate(node.mapper))}
    return protect_workers(instantiate(node))


def check_classes(cfg: DictConfig, names: list[str]) -> None:
    """Raise ValueError if a dataset has classes that the model has no output for."""
    have = cfg.model.get("num_classes")
    for name in names:
        need = len(MetadataCatalog.get(name).get("thing_classes") or ())
        if have is not None and need > have:
            raise ValueError(f"model.num_classes={have}, but {name} has {need} classes: set model.num_classes={need}")


def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the first, which checkpoints have: each has batch norm's statistics of its own
    images, and one training would be evaluated as several models."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def evaluator_of(
    cfg: DictConfig, model: nn.Module, watchers: Sequence[DatasetEvaluator] = ()
) -> Callable[[], Mapping[str, Any]]:
    """A function that evaluates `model` on the test data. `watchers` are shown the detections too.

    With a moving average, that is what the results are of; those of the plain weights come beside them as
    `<task>_without_ema`, unless `train.model_ema.use_ema_weights_for_eval_only`.
    """
    if "evaluator" not in cfg.dataloader:
        return dict
    loader = build_loader(cfg, "test")
    names = dataset_names(cfg, "test")
    with annotations_explained(names):
        evaluators = [instantiate(cfg.dataloader.evaluator), *watchers]

    def run(weights: str) -> tuple[dict[str, Any], Exception | None]:
        logger.info("Evaluating the %s weights", weights)
        share_buffers(model)
        with autocast_of(cfg):
            return evaluate_together(model, loader, evaluators)

    def evaluate() -> dict[str, Any]:
        averages = cfg.train.model_ema.enabled and ema.get_model_ema_state(model).has_inited()
        if cfg.train.model_ema.enabled and not averages:
            logger.warning("There are no averaged weights in this checkpoint")
        results: dict[str, Any] = {}
        error = None
        if not averages or not cfg.train.model_ema.use_ema_weights_for_eval_only:
            plain, error = run("trained")
            results = {f"{task}_without_ema" if averages else task: metrics for task, metrics in plain.items()}
        if averages and error is None:
            with ema.apply_model_ema_and_restore(model):  # detrex restores nothing if an error passes through it
                averaged, error = run("averaged")
            results |= averaged
        if error is not None:
            with annotations_explained(names):
                raise error
        if comm.is_main_process():
            finish_results(cfg)
        return results

    return evaluate


def finish_results(cfg: DictConfig) -> None:
    """Give `coco_instances_results.json` the ids of the user's annotations; tell if there was nothing to measure by."""
    folder = cfg.dataloader.evaluator.get("output_dir")
    file = Path(folder, "coco_instances_results.json") if folder else None
    written = file is not None and file.is_file()
    for name in dataset_names(cfg, "test"):
        found = annotation_file_of(name)
        json_file = MetadataCatalog.get(name).get("json_file")
        if written and found and json_file != found.path and (left_out := restore_original_ids(file, json_file)):
            logger.info("%s leaves out %d detections of classes that %s does not have", file, left_out, name)
        if found and not found.objects:
            where = f"; the detections are in {file}" if written else ""
            logger.info("%s has no annotated objects, so there are no figures%s", name, where)


def evaluate_checkpoint(cfg: DictConfig, point: ResumePoint | None) -> Mapping[str, Any]:
    """Evaluate the checkpoint of the output folder at `point`, or if that is None `train.init_checkpoint`."""
    if not (point or cfg.train.init_checkpoint):
        raise ValueError("nothing to evaluate: give train.init_checkpoint=FILE, or --resume in the folder of a run")
    keep_freed_memory()
    checkpoint = str(Path(cfg.train.output_dir, point.name)) if point else cfg.train.init_checkpoint
    match_evaluation(cfg, checkpoint)
    model = build_model(cfg)
    evaluate = evaluator_of(cfg, model)
    checkpointer = WholeModelCheckpointer(model, cfg.train.output_dir, **ema.may_get_ema_checkpointer(cfg, model))
    checkpointer.load(checkpoint)
    return evaluate()


def train(
    cfg: DictConfig,
    args: argparse.Namespace,
    point: ResumePoint | None,
    config: Mapping[str, str],
    weights: Prepared | None,
) -> Evaluations:
    """Train, evaluating and saving on the way.

    Args:
        point: where to go on; None to begin.
        config: the config as it was given, for the checkpoints.
        weights: the checkpoint that the training begins with, or goes on with.
    """
    classes = match_training(cfg, point)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    sample = DetectionSample() if is_wanted(cfg) else None
    evaluations = Evaluations(evaluator_of(cfg, model, [sample] if sample else []))
    loader = build_loader(cfg, "train")
    watchdog = Watchdog(cfg.train.get("hang_seconds", 0))
    trainer = build_trainer(cfg, model, loader, optimizer, watchdog.mark)
    checkpointer = SafeCheckpointer(
        model,
        cfg.train.output_dir,
        trainer=trainer,
        optimizer=optimizer,  # for other readers of the file; its tensors are stored once
        **ema.may_get_ema_checkpointer(cfg, model),
    )
    checkpointer.last_iteration = cfg.train.max_iter - 1
    if comm.is_main_process():
        path = Path(cfg.train.output_dir, "metrics.json")
        cut_metrics(path, point, resumes=args.resume, max_iter=cfg.train.max_iter)
    periodic = present(on_main(lambda: periodic_checkpointer(cfg, checkpointer)))
    behind = present(
        hooks.EvalHook(cfg.train.eval_period, evaluations),
        on_main(lambda: TrainingReport(cfg, sample) if sample else None),
        on_main(lambda: hooks.PeriodicWriter(build_writers(cfg), cfg.train.log_period)),
    )
    best = present(on_main(lambda: best_checkpointer(cfg, checkpointer)))
    facts = {
        "config": dict(config),
        "batch_size": cfg.dataloader.train.get("total_batch_size"),
        "max_iter": cfg.train.max_iter,
        "classes": classes.plain() if classes else None,
        SETTINGS: weights.kept_settings() if weights else {},
    }
    state = RunState(loader, periodic, behind, best, lambda iteration: saves_at(cfg, iteration), facts)
    stop = StopEarly(checkpointer, state, loader)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            ClipGradients(optimizer, **(cfg.train.clip_grad.params if cfg.train.clip_grad.enabled else NO_CLIPPING)),
            ema.EMAHook(cfg, model) if cfg.train.model_ema.enabled else None,
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            state.before_checkpoint(),
            *periodic,
            *behind,
            state,
            *best,
            stop,
            on_main(LiveLine),
        ]
    )

    if args.resume and point is None:
        logger.warning("There is no checkpoint in %s to resume from: starting anew", cfg.train.output_dir)
    start = "" if point else cfg.train.init_checkpoint
    with class_heads_matched(cfg, model, start, known_classes(start, classes, assume=True), classes):
        checkpointer.resume_or_load(start, resume=point is not None)
    with watchdog.watching(), stop.listening(), sigchld_restored():
        trainer.train(point.iteration + 1 if point else 0, cfg.train.max_iter)
    return evaluations


def present(*hooks_or_none: HookBase | None) -> list[HookBase]:
    return [hook for hook in hooks_or_none if hook is not None]


def saves_at(cfg: DictConfig, iteration: int) -> bool:
    """Whether a checkpoint may be saved behind this iteration."""
    done = iteration + 1
    periods = (cfg.train.checkpointer.period, cfg.train.eval_period)
    return done >= cfg.train.max_iter or any(period > 0 and done % period == 0 for period in periods)


def on_main(build: Callable[[], HookBase | None]) -> HookBase | None:
    """A hook for the main process alone."""
    return build() if comm.is_main_process() else None


def build_trainer(
    cfg: DictConfig,
    model: nn.Module,
    loader: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    mark: Callable[[str], None] = lambda doing: None,
) -> Trainer:
    on_gpu = torch.device(cfg.train.device).type == "cuda"
    device_ids = [torch.cuda.current_device()] if on_gpu else None
    model = create_ddp_model(model, device_ids=device_ids, **cfg.train.ddp)
    return Trainer(
        model,
        loader,
        optimizer,
        amp_type(cfg),
        skip_nonfinite=cfg.train.get("skip_nonfinite", 0),
        folder=cfg.train.output_dir,
        mark=mark,
    )


def periodic_checkpointer(cfg: DictConfig, checkpointer: SafeCheckpointer) -> HookBase:
    """Saves every `train.checkpointer.period` iterations and at the end; with a period of 0 at the end only."""
    period, max_to_keep = cfg.train.checkpointer.period, cfg.train.checkpointer.max_to_keep
    return hooks.PeriodicCheckpointer(checkpointer, period or cfg.train.max_iter + 1, max_to_keep=max_to_keep)


def best_checkpointer(cfg: DictConfig, checkpointer: SafeCheckpointer) -> HookBase | None:
    if "evaluator" not in cfg.dataloader:
        return None
    return BestCheckpointer(cfg.train.eval_period, checkpointer, BEST_METRIC)


def build_writers(cfg: DictConfig) -> list[EventWriter]:
    writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
    return writers + [WandbWriter(cfg)] if cfg.train.wandb.enabled else writers


class WandbWriter(EventWriter):
    """Scalars for Weights & Biases; `train.wandb.params` go to `wandb.init`."""

    def __init__(self, cfg: DictConfig, window_size: int = 20):
        try:
            import wandb
        except ImportError as error:
            raise ValueError("train.wandb.enabled needs wandb: pip install wandb, or switch it off") from error
        params = dict(cfg.train.wandb.params)
        Path(params.get("dir", ".")).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(config=OmegaConf.to_container(cfg.train, resolve=True), **params)
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        storage = get_event_storage()
        latest = storage.latest_with_smoothing_hint(self._window_size)
        news = {name: value for name, (value, iteration) in latest.items() if iteration > self._last_write}
        self._run.log(news, step=storage.iter)
        self._last_write = storage.iter

    def close(self) -> None:
        self._run.finish()


class ClipGradients(HookBase):
    """`torch.nn.utils.clip_grad_norm_` over all parameters before each step; records the norm as `grad_norm`."""

    def __init__(self, optimizer: torch.optim.Optimizer, **params: float):
        self._optimizer = optimizer
        self._params = params

    def after_backward(self) -> None:
        scaler = getattr(self.trainer, "grad_scaler", None)
        if scaler is not None:
            scaler.unscale_(self._optimizer)
        weights = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._norm = self.trainer.grad_norm = nn.utils.clip_grad_norm_(weights, **self._params)

    def after_step(self) -> None:  # not before: it would wait for the device
        norm = self._norm.item()
        if math.isfinite(norm):
            self.trainer.storage.put_scalar("grad_norm", norm)


class StopEarly(HookBase):
    """Ctrl-C, the SIGTERM that clusters send, or the death of a data worker ends the training after the current
    iteration, with a checkpoint of it. A second Ctrl-C ends it at once.

    Args:
        loader: the training data. If one of its workers dies and it does not read on by itself, as a `ResumableLoader`
            does, the checkpoint is of the iteration before, and only a run of one process saves one.
    """

    def __init__(self, checkpointer: SafeCheckpointer, state: RunState, loader: Iterable[Any]):
        self._checkpointer, self._state, self._loader = checkpointer, state, loader
        self._signal = 0
        self._asked_at = 0.0
        self._stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Heed the signals in this way inside the block."""
        self._process = os.getpid()
        outer = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in outer.items():
                signal.signal(number, handler)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data loader's worker: the iteration that is to be finished may need it
            return
        if self._signal:  # launchers pass on what all processes were sent already
            if signum == signal.SIGINT and time.monotonic() - self._asked_at > SAME_SIGNAL:
                raise KeyboardInterrupt
            return
        self._signal, self._asked_at = signum, time.monotonic()
        if comm.is_main_process():
            print("\nstopping after this iteration, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)

    def after_step(self) -> None:
        signals, deaths = zip(*comm.all_gather((self._signal, getattr(self._loader, "worker_death", ""))), strict=True)
        if signum := max(signals):
            self._save()
            raise Interrupted(signum)
        if death := next(filter(None, deaths), ""):
            name = self._save()
            raise ChildProcessError(
                f"{death}; {name}.pth is the checkpoint of this iteration, --resume goes on; "
                "if memory ran out: fewer dataloader.train.num_workers, or smaller batches"
            )

    def _save(self) -> str:
        """Save the current iteration; returns the checkpoint's name."""
        self._stopped = True
        iteration = self.trainer.iter
        self._state.collect(complete=True)
        self._checkpointer.save(name := f"model_{iteration:07d}", iteration=iteration)
        return name

    def after_train(self) -> None:
        trainer = self.trainer
        if trainer.worker_death and trainer.iter > trainer.start_iter and comm.get_world_size() == 1:
            trainer.iter -= 1  # the last whole iteration
            self._save()
        if self._stopped:
            options = [argument for argument in sys.argv[1:] if argument != "--resume"]
            command = shlex.join([*program(), "--resume", *options])
            done = f"{self.trainer.iter + 1} of {self.trainer.max_iter}"
            logger.info("Stopped after %s iterations; add --resume to go on: %s", done, command)


class Interrupted(KeyboardInterrupt):
    """By the signal that is its argument."""


def report(cfg: DictConfig, results: Mapping[str, Any]) -> None:
    """Where things are, and the table of results, last."""
    folder = Path(cfg.train.output_dir)
    names = ("report.html", "model_final.pth", "model_best.pth", "metrics.json", "coco_instances_results.json")
    logger.info("In %s: %s", folder, ", ".join(name for name in names if (folder / name).exists()))
    print_csv_format(results)


def argument_parser() -> argparse.ArgumentParser:
    parser = default_argument_parser()
    parser.add_argument(
        "--allow-changes", action="store_true", help="with --resume: even if the training began with another config"
    )
    add_folder_options(parser)
    return parser


@contextmanager
def sigterm_passed_on() -> Iterator[None]:
    """SIGTERM for this process, which started those of the run, is one for them."""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        for process in multiprocessing.active_children():
            process.terminate()
        raise Interrupted(signum)

    outer = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, outer)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argument_parser(), argv)
    try:
        with errors_in_one_line(), sigterm_passed_on():
            check_folder_options(arguments)
            if arguments.num_gpus > 1:  # what is wrong here should stop one process, not all of them
                load_config(arguments.config_file, arguments.opts)
            launch(
                run,
                arguments.num_gpus,
                num_machines=arguments.num_machines,
                machine_rank=arguments.machine_rank,
                dist_url=arguments.dist_url,
                args=(arguments,),
            )
    except KeyboardInterrupt as interrupt:
        sys.exit(128 + (interrupt.args[0] if isinstance(interrupt, Interrupted) else signal.SIGINT))
