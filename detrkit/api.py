"""The Python API: train, evaluate and export detectors; see `docs/python.md`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from detectron2.utils import comm
from omegaconf import DictConfig

from detrkit.config.load import load_config
from detrkit.config.overrides import as_list
from detrkit.inference.graph_evaluation import evaluate_network
from detrkit.inference.runtimes import is_graph, open_graph
from detrkit.inference.sources import weights_of_run
from detrkit.reports.training_report import build_report
from detrkit.runtime.program import subnormals_flushed
from detrkit.runtime.threads import number_of_threads_kept
from detrkit.training import evaluation, folder, loop
from detrkit.training.preflight import check_data
from detrkit.training.session import check_exists, join_torchrun, log_results, logs_closed_on_exit, prepare


def train(
    cfg: DictConfig,
    *,
    resume: bool | Literal["auto"] = False,
    allow_changes: bool = False,
    overwrite: bool = False,
    config_file: str = "",
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Train the detector of a config, with `report.html` in its output folder; see `detrkit.training.loop.train`.

    Returns:
        The results of the last evaluation, such as `{"bbox": {"AP": 50.2, ...}}`.
    """
    return loop.train(
        cfg,
        resume=resume,
        allow_changes=allow_changes,
        overwrite=overwrite,
        config_file=config_file,
        overrides=overrides,
        build_report=build_report,
    )


def evaluate(
    cfg: DictConfig,
    checkpoint: str | os.PathLike = "",
    *,
    config_file: str = "",
    overrides: Sequence[str] = (),
    which: str | None = None,
    runtime: str | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Evaluate a checkpoint on the test data of a config, and log the results in its output folder.

    Args:
        checkpoint: the folder of a training, a .pth or .safetensors file, a URL, or `zoo:NAME`; "" for
            `cfg.train.init_checkpoint`. Or a graph (.onnx, .xml), which brings its own model and preprocessing, and is
            evaluated image by image.
        config_file: where the config came from, for the log.
        overrides: `key=value` that the user gave; settings that belong to the weights do not replace them.
        which: the "best" or the "final" checkpoint of a training's folder; see `Detector`.
        runtime, dtype: of a graph, see `detrkit.inference.runtimes.open_graph`.

    Returns:
        `{task: metrics}`, such as `{"bbox": {"AP": 50.2, ...}}`; {} on other processes than the main one.

    Raises:
        ValueError: there is no checkpoint, or it is of another model or other classes.
        FileNotFoundError: there is no such file.
    """
    checkpoint = os.fspath(checkpoint) or cfg.train.init_checkpoint
    if not checkpoint:
        raise ValueError("nothing to evaluate: give train.init_checkpoint=FILE, or the folder of a training")
    if Path(checkpoint).is_dir():
        checkpoint = str(weights_of_run(Path(checkpoint), which))
    with subnormals_flushed(), logs_closed_on_exit():
        join_torchrun()
        network = open_graph(checkpoint, runtime, dtype=dtype) if is_graph(checkpoint) else None
        if not network:
            check_exists(checkpoint)
        check_data(cfg, ("test",))
        prepare(cfg, "" if network else checkpoint, config_file=config_file, overrides=overrides)
        with number_of_threads_kept():
            if network:
                results = evaluate_network(cfg, network, checkpoint)
            else:
                results = evaluation.evaluate(cfg, checkpoint)
        if comm.is_main_process():
            log_results(cfg, results)
        return results


def cfg_for_folder(
    data: str | os.PathLike,
    config: str | None = None,
    overrides: Sequence[str] = (),
    *,
    format: str | None = None,
    keep_classes: Sequence[str] | None = None,
    epochs: int | None = None,
    overwrite: bool = False,
) -> DictConfig:
    """The config of a training on a folder of annotated images; see `detrkit.training.folder.write_folder_config`.

    The data in COCO's format and `config.py` are written to `train.output_dir`, by default `output/<folder's name>`.
    """
    options = {"format": format, "keep_classes": keep_classes, "epochs": epochs, "overwrite": overwrite}
    written = folder.write_folder_config(Path(data), config, as_list(overrides), **options)
    return load_config(str(written.file))
