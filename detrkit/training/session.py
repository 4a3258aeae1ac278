"""Set up and finish a training or an evaluation: processes, complete config, logs, list of files and results."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import default_setup
from detectron2.evaluation import print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from tabulate import tabulate

from align_detr._platform import describe
from detrkit.config.changes import config_changes
from detrkit.datasets.classes import dataset_names
from detrkit.datasets.registration import saved_registrations
from detrkit.runtime.device import device_name
from detrkit.runtime.logs import LOGGERS, log_traceback, terminal_handlers
from detrkit.runtime.weight_files import is_name, is_remote, weights_problem
from detrkit.weights import Prepared, local_path, prepare_config

from .builders import amp_name, amp_type
from .checkpoints import ResumePoint, download
from .config_values import check_values, set_device
from .run_state import RunState

logger = logging.getLogger("detectron2.session")

FAST_DEV_RUN = dict(max_iter=20, eval_period=10, log_period=1)


def join_torchrun() -> None:
    """Set up the processes that torchrun started, which detectron2's `launch` does not know of."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def prepare(
    cfg: DictConfig,
    checkpoint: str = "",
    *,
    config_file: str = "",
    overrides: Sequence[str] = (),
    training: bool = False,
) -> Prepared | None:
    """Complete the config in place, open the logs, save config.yaml, seed the generators, and log the platform.

    Args:
        checkpoint: the initial weights; their settings are set in the config.
        config_file: where the config came from; detectron2 copies it to the log.
        overrides: `key=value` that the user gave, which are not replaced by settings of the weights.
        training: whether the run trains.

    Returns:
        What is known of the checkpoint; None if it is of this project.

    Raises:
        ValueError: the config lacks a section, or a value cannot be used here.
    """
    check_values(cfg, config_file)
    set_device(cfg)
    if cfg.train.fast_dev_run.enabled:
        cfg.train.update(FAST_DEV_RUN)
    evaluator = cfg.dataloader.get("evaluator", {})
    if evaluator.get("output_dir", "") is None:
        evaluator.output_dir = "${train.output_dir}"  # in config.yaml too, whose folder may be moved

    # The config.yaml in the output folder is no program, so it cannot register datasets itself.
    names = [name for split in ("train", "test") for name in dataset_names(cfg, split)]
    if datasets := saved_registrations(names):
        cfg.datasets = datasets

    others = terminal_handlers()
    weights = prepare_config(cfg, checkpoint, overrides=list(overrides), for_training=training)
    with nullcontext() if training else _config_kept(Path(cfg.train.output_dir)):
        default_setup(cfg, SimpleNamespace(config_file=config_file, eval_only=False))
    for name in LOGGERS:
        if name not in ("detectron2", "fvcore"):  # which default_setup has set up
            setup_logger(cfg.train.output_dir, comm.get_rank(), name=name)
    for handler in terminal_handlers():
        if handler not in others:  # details are for the log file; detectron2's own prints them as well
            handler.setLevel(logging.INFO)
    logger.info(describe())
    device, count = device_name(cfg.train.device), comm.get_world_size()
    logger.info("PyTorch %s on %s, %d process(es)", torch.__version__, device, count)
    if cfg.train.amp.enabled and amp_type(cfg) is None:
        logger.warning("This CPU has no units for %s, so train.amp uses float32, which is faster", amp_name(cfg))
    if weights:
        weights.log()
    return weights


@contextmanager
def _config_kept(folder: Path) -> Iterator[None]:
    """Restore the config.yaml of a training's folder on exit: it belongs to the checkpoints there."""
    config = folder / "config.yaml"
    is_of_training = config.is_file() and any(folder.glob("model_*.pth"))
    before = config.read_bytes() if is_of_training else b""
    yield
    if is_of_training and comm.is_main_process():
        config.write_bytes(before)


@contextmanager
def logs_closed_on_exit() -> Iterator[None]:
    """Close, on exit, the log files that were opened inside, so that another run in this process has its own.

    An error that ends the block is logged with its traceback first.
    """
    before = {name: list(logging.getLogger(name).handlers) for name in LOGGERS}
    try:
        yield
    except Exception:
        log_traceback()
        raise
    finally:
        for name, handlers in before.items():
            log = logging.getLogger(name)
            for handler in [handler for handler in log.handlers if handler not in handlers]:
                log.removeHandler(handler)
                if isinstance(handler, logging.FileHandler):
                    handler.close()
        if hasattr(setup_logger, "cache_clear"):  # its cache would skip the setup of the same folder
            setup_logger.cache_clear()


def saved_facts(point: ResumePoint) -> dict[str, Any]:
    """The plain data that a training saved in a checkpoint; {} in those of early versions."""
    return point.hooks.get(RunState.__qualname__, {}).get("facts", {})


def check_unchanged(point: ResumePoint, config: Mapping[str, str]) -> None:
    """Raise ValueError if the checkpoint is of a training with another config.

    Args:
        config: the config now, as `flat_config` gives it.
    """
    facts = saved_facts(point)
    # The config as the user gave it, and config.yaml, which has the settings of the initial weights too.
    known = [facts[name] for name in ("config", "complete_config") if facts.get(name)]
    differences = [config_changes(before, config) for before in known]
    if differences and all(differences):
        fewest = min(differences, key=len)
        more = f" and {len(fewest) - 3} more" if len(fewest) > 3 else ""
        raise ValueError(
            f"{point.name} is of a training with another config, so it is not resumed: "
            f"{', '.join(fewest[:3])}{more}; "
            "--allow-changes goes on all the same, another train.output_dir starts anew"
        )


def check_iterations(point: ResumePoint, max_iter: int) -> None:
    """Raise ValueError if a training has more iterations already than it is to have."""
    if (done := point.iteration + 1) > max_iter:
        raise ValueError(f"{point.name} has {done} iterations already: train.max_iter={max_iter} is too small")


def check_exists(checkpoint: str, *, fetch: bool = True) -> None:
    """Check that a file of weights is there and complete. Names are downloaded, and URLs unless `fetch` is false.

    Raises:
        OSError: it is not there, or cannot be downloaded.
        ValueError: it is incomplete, or no file of weights; or there is no such name.
    """
    if not checkpoint:
        return
    if is_remote(checkpoint) and not is_name(checkpoint):
        if fetch:
            download(checkpoint)
        return  # its content is checked on loading
    checkpoint = local_path(checkpoint)
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"train.init_checkpoint={checkpoint}: no such file")
    if problem := weights_problem(checkpoint):
        raise ValueError(f"train.init_checkpoint: {problem}")


def log_results(cfg: DictConfig, results: Mapping[str, Any]) -> None:
    """Log which files are in the output folder, and the tables of results."""
    folder = Path(cfg.train.output_dir)
    names = ("report.html", "model_final.pth", "model_best.pth", "metrics.json", "coco_instances_results.json")
    logger.info("In %s: %s", folder, ", ".join(name for name in names if (folder / name).exists()))
    for task, metrics in results.items():
        if isinstance(metrics, Mapping):
            logger.info("Results of %s, %%:\n%s", task, results_table(metrics))
    print_csv_format(results)


def results_table(metrics: Mapping[str, float]) -> str:
    """Tables of the metrics of a task: the main ones, and AP by class."""
    by_class = {name.partition("-")[2]: value for name, value in metrics.items() if "-" in name}
    main = {name: value for name, value in metrics.items() if "-" not in name}
    style = {"tablefmt": "github", "floatfmt": ".2f", "missingval": "–"}
    tables = [tabulate([_without_nan(main.values())], list(main), **style)]
    if by_class:
        rows = zip(by_class, _without_nan(by_class.values()), strict=True)
        tables.append(tabulate(rows, ["class", "AP"], **style))
    return "\n\n".join(tables)


def _without_nan(values: Iterable[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]
