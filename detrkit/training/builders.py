"""Model, optimizer, data loaders and trainer of a config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from itertools import chain
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import DatasetFromList, MetadataCatalog
from detectron2.engine import create_ddp_model
from detrex.modeling import ema
from omegaconf import DictConfig, ListConfig
from torch import nn

from detrkit.config.load import call_parameters
from detrkit.datasets.annotations import annotations_explained
from detrkit.datasets.mapper import with_rgb_images
from detrkit.datasets.mixing import MixingMapper
from detrkit.runtime.precision import autocast_is_faster
from detrkit.runtime.text import plural

from .activation_checkpointing import checkpoint_activations
from .backbone_stages import freeze_backbone, with_layer_decay
from .data_workers import preload_workers, protect_workers
from .dataset_shares import dataset_shares, load_datasets, mixing_factors
from .preflight import check_images
from .rare_classes import repeat_factors
from .sharding import shard_optimizer
from .stream import resumable_loader
from .trainer import Trainer

logger = logging.getLogger("detectron2.builders")

AMP_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def amp_name(cfg: DictConfig) -> str:
    """The type that `train.amp` names."""
    return cfg.train.amp.get("dtype", "float16")


def amp_type(cfg: DictConfig) -> torch.dtype | None:
    """The type of mixed precision; None for float32: `train.amp` is off, or slower on this CPU."""
    dtype = AMP_TYPES[amp_name(cfg)] if cfg.train.amp.enabled else None
    return dtype if dtype and autocast_is_faster(dtype, cfg.train.device) else None


def autocast_of(cfg: DictConfig) -> AbstractContextManager:
    """The precision of `train.amp`, outside of training steps."""
    dtype = amp_type(cfg)
    # PyTorch 2.1 refuses float16 on a CPU even where autocast is off.
    return torch.autocast(torch.device(cfg.train.device).type, dtype) if dtype else nullcontext()


def build_model(cfg: DictConfig) -> nn.Module:
    """The model on its device, with an empty moving average if the config has one."""
    model = instantiate(cfg.model).to(cfg.train.device)
    freeze_backbone(cfg, model)
    ema.may_build_model_ema(cfg, model)
    if cfg.train.get("activation_checkpointing", False):
        count = checkpoint_activations(model)
        logger.info("Activation checkpointing of %d layers: less memory, more time", count)
    if cfg.train.get("compile", False):
        compile_parts(model)
    size = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.debug("Model:\n%s", model)
    logger.info("%s: %.2f M parameters, %.2f M of them trained", type(model).__name__, size / 1e6, trained / 1e6)
    return model


def compile_parts(model: nn.Module) -> None:
    """Compile, in place, the modules that map tensors to tensors; reading inputs and matching stay in Python."""
    transformer = getattr(model, "transformer", None)
    for owner, name in ((model, "backbone"), (model, "neck"), (transformer, "encoder"), (transformer, "decoder")):
        part = getattr(owner, name, None)
        if part is not None:
            part.forward = torch.compile(part.forward)  # wrapping the module would rename its parameters


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """`cfg.optimizer` over the parameters of `model`; fused into one kernel where PyTorch can."""
    cfg.optimizer.params.model = model
    node = with_layer_decay(cfg, model)
    optimizer = None
    if "fused" in call_parameters(cfg.optimizer.get("_target_")) and "fused" not in cfg.optimizer:
        with suppress(RuntimeError):  # not on this device, or not yet in this PyTorch
            optimizer = instantiate({**node, "fused": True})
    optimizer = optimizer or instantiate(node)
    for group in optimizer.param_groups:  # older PyTorch keeps OmegaConf's lists, which checkpoints must not hold
        group.update({name: tuple(value) for name, value in group.items() if isinstance(value, ListConfig)})
    return shard_optimizer(optimizer) if cfg.train.get("shard_optimizer", False) else optimizer


def build_loader(cfg: DictConfig, split: str) -> Iterable[Any]:
    """The data of `cfg.dataloader.train` or `.test`.

    Args:
        split: "train" or "test". "test" checks that all images exist, can be read and have the annotated size.

    Raises:
        ValueError: an image cannot be used, or the data have more classes than the model.
    """
    preload_workers()
    node = cfg.dataloader[split]
    given: dict[str, Any] = {}
    source = node.get("dataset")
    shares = cfg.get("train", {}).get("dataset_shares", "size") if split == "train" else "size"
    if isinstance(source, DictConfig) and "names" in source:
        names = [source.names] if isinstance(source.names, str) else list(source.names)
        with annotations_explained(names):
            parts = [instantiate(source)] if shares == "size" else load_datasets(source, names)
        dataset = parts[0] if len(parts) == 1 else list(chain.from_iterable(parts))
        logger.info("%s data: %s, %d images", split, " + ".join(names), len(dataset))
        check_classes(cfg, names)
        if split == "test":
            check_images(" + ".join(names), dataset)
        else:
            factors = rare_class_factors(cfg, dataset)
            if shares != "size":
                factors = dataset_factors(names, list(map(len, parts)), shares, factors)
            if loader := resumable_loader(node, dataset, factors, partial(mixing_mapper, cfg)):
                return loader
            if factors is not None:
                raise ValueError(
                    "train.repeat_threshold and train.dataset_shares choose the images: dataloader.train has to be "
                    "detectron2's build_detection_train_loader without a sampler"
                )
        # Not a list: instantiating would look for nodes in each of COCO's 118,000 images.
        given["dataset"] = DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
    elif shares != "size":
        raise ValueError(f"train.dataset_shares={shares} mixes the datasets of dataloader.train.dataset.names")
    if "mapper" in node:
        mapper = with_rgb_images(instantiate(node.mapper))
        given["mapper"] = mixing_mapper(cfg, mapper, given["dataset"]) if split == "train" and given else mapper
    return protect_workers(instantiate({**node, **given}))


def mixing_mapper(cfg: DictConfig, mapper: Callable, dataset: Any) -> Callable:
    """The mapper with mosaic and pasted objects as `train.mix` says."""
    options = cfg.get("train", {}).get("mix") or {}
    return MixingMapper(mapper, dataset, **options) if options.get("mosaic") or options.get("copy_paste") else mapper


def rare_class_factors(cfg: DictConfig, dataset: Any) -> list[float] | None:
    """How often an epoch uses each training image on average, by `train.repeat_threshold`; None if that is 0."""
    threshold = cfg.get("train", {}).get("repeat_threshold", 0.0)
    if not threshold:
        return None
    if not 0 < threshold <= 1:
        raise ValueError(f"train.repeat_threshold={threshold} is a share of the images: give a number from 0 to 1")
    factors = repeat_factors(dataset, threshold)
    repeated = sum(factor > 1 for factor in factors)
    logger.info("Rare classes: %d of %d images come more than once in an epoch", repeated, len(factors))
    return factors


def dataset_factors(
    names: Sequence[str], sizes: Sequence[int], rule: str | Sequence[float], factors: Sequence[float] | None
) -> list[float]:
    """How often each training image comes in an epoch by `train.dataset_shares`; see `mixing_factors`."""
    shares = dataset_shares(names, sizes, rule)
    for name, size, share in zip(names, sizes, shares, strict=True):
        logger.info("%s: %d images, %.1f%% of the draws", name, size, 100 * share)
    return mixing_factors(sizes, shares, factors)


def check_classes(cfg: DictConfig, names: list[str]) -> None:
    """Raise ValueError if a dataset has classes that the model has no output for."""
    have = cfg.model.get("num_classes")
    for name in names:
        need = len(MetadataCatalog.get(name).get("thing_classes") or ())
        if have is not None and need > have:
            classes = plural(need, "class")
            raise ValueError(f"model.num_classes={have}, but {name} has {classes}: set model.num_classes={need}")


def build_trainer(
    cfg: DictConfig,
    model: nn.Module,
    loader: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    report_phase: Callable[[str], None] = lambda phase: None,
) -> Trainer:
    """The trainer of a config.

    Args:
        report_phase: called when a part of a step begins; see `Trainer`.
    """
    on_gpu = torch.device(cfg.train.device).type == "cuda"
    device_ids = [torch.cuda.current_device()] if on_gpu else None
    return Trainer(
        create_ddp_model(model, device_ids=device_ids, **cfg.train.ddp),
        loader,
        optimizer,
        amp_type(cfg),
        clip_grad=cfg.train.clip_grad.params if cfg.train.clip_grad.enabled else None,
        skip_nonfinite=cfg.train.get("skip_nonfinite", 0),
        folder=cfg.train.output_dir,
        report_phase=report_phase,
        accumulate=cfg.train.get("accumulate", 1),
    )
