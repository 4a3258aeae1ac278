"""Arguments, logging and distributed model of training scripts."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["create_ddp_model", "default_argument_parser", "default_setup", "default_writers"]

_EPILOG = """examples:
  {prog} --config-file cfg.py train.max_iter=1000       train on one device
  {prog} --config-file cfg.py --num-gpus 8              train on 8 GPUs of this machine
  {prog} --config-file cfg.py --resume                  go on from the last checkpoint
  {prog} --config-file cfg.py --eval-only train.init_checkpoint=model.pth
"""


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The options that training scripts have in common; what follows them are overrides of the config."""
    parser = argparse.ArgumentParser(
        epilog=epilog or _EPILOG.format(prog=Path(sys.argv[0]).name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="the config, a .py or .yaml file")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the output folder")
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs, and so processes, per machine")
    parser.add_argument("--num-machines", type=int, default=1, help="how many machines take part")
    parser.add_argument("--machine-rank", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument(
        "--dist-url", default="auto", help='where the processes meet, as tcp://HOST:PORT; "auto" on one machine'
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="key=value",
        help="overrides of the config, in hydra's grammar; they come last",
    )
    return parser


def default_setup(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Output folder with `log.txt` and `config.yaml`, console log, random seeds. Every process calls it.

    Reads `train.output_dir`, and `train.seed`, below 0 for a random one; each process adds its rank to it.
    """
    rank = comm.get_rank()
    output_dir = cfg.train.output_dir
    if comm.is_main_process() and output_dir:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    comm.synchronize()
    setup_logger(output_dir or None, rank, name="fvcore")
    logger = setup_logger(output_dir or None, rank)

    logger.info("Process %d of %d; %s", rank, comm.get_world_size(), collect_env_info())
    logger.debug("Command line: %s", shlex.join(sys.argv))
    if comm.is_main_process() and output_dir:
        path = os.path.join(output_dir, "config.yaml")
        LazyConfig.save(cfg, path)
        logger.info("The full config is in %s", path)

    seed = cfg.train.get("seed", -1)
    seed_all_rng(None if seed < 0 else seed + rank)
    if torch.cuda.is_available() and not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.train.get("cudnn_benchmark", False)


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """Wrap the model in DistributedDataParallel if there are several processes.

    Args:
        model: on one device, a GPU or the CPU.
        fp16_compression: send gradients in half precision.
        kwargs: of DistributedDataParallel.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    if device.type == "cuda":
        kwargs.setdefault("device_ids", [device])
    if "broadcast_buffers" in kwargs and "forward_sync_buffers" in signature(DistributedDataParallel).parameters:
        kwargs["forward_sync_buffers"] = kwargs.pop("broadcast_buffers")  # its name since torch 2.13
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        ddp.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return ddp


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """A line on the console, `metrics.json`, and TensorBoard files beside it."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]
