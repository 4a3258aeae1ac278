"""Stages of any backbone, by the names of its parameters: to freeze the first ones, and for rates that grow with depth.

Stage 0 is what comes before the first numbered group of layers: stem, patch embedding, positions. The groups follow in
their order: `res2` and so on of a ResNet, `layers.0` of Swin, `blocks.0` of a ViT, whose stages are single blocks, and
timm's `blocks`, `layer1`, `stages_0`. Output norms and the levels of a feature pyramid belong to the last stage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from detectron2.config import instantiate
from detectron2.engine import HookBase
from omegaconf import DictConfig
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detrkit.config.load import call_parameters

GROUP = re.compile(r"(?:^|\.)(?:res|layers?|stages?|blocks?)[._]?(\d+)(?:\.|$)")
PREFIX = "backbone."


def backbone_stages(names: Iterable[str]) -> dict[str, int]:
    """The stage of each parameter or module of a backbone.

    Args:
        names: in the order of the backbone, without its own name.
    """
    names = list(names)
    groups = {name: int(found[1]) for name in names if (found := GROUP.search(name))}
    ranks = {group: rank for rank, group in enumerate(sorted(set(groups.values())), 1)}
    stages, last = {}, max(ranks.values(), default=0)
    is_before = True
    for name in names:
        is_before &= name not in groups
        stages[name] = ranks[groups[name]] if name in groups else 0 if is_before else last
    return stages


def freeze_backbone(cfg: DictConfig, model: nn.Module) -> None:
    """Exclude the first stages of the backbone and its batch norms from training, as `train.freeze` says.

    Raises:
        ValueError: the model has no backbone, or fewer stages.
    """
    options = cfg.train.get("freeze") or {}
    count, batch_norm = options.get("stages", 0), options.get("batch_norm", False)
    if not count and not batch_norm:
        return
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise ValueError(f"train.freeze: {type(model).__name__} has no backbone")
    parameters = dict(backbone.named_parameters())
    stages = backbone_stages(parameters)
    most = 1 + max(stages.values(), default=0)
    if type(count) is not int or not 0 <= count <= most:
        raise ValueError(
            f"train.freeze.stages={count}, but the backbone has {most} stages: give a number up to that"
        )
    for name, parameter in parameters.items():
        if stages[name] < count:
            parameter.requires_grad_(False)
    for norm in frozen_batch_norms(cfg, model):
        norm.requires_grad_(False)


def frozen_batch_norms(cfg: DictConfig, model: nn.Module) -> list[nn.Module]:
    """The batch norms of the backbone whose statistics `train.freeze` keeps: all, or those of the frozen stages."""
    options = cfg.train.get("freeze") or {}
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        return []
    modules = dict(backbone.named_modules())
    stages = backbone_stages(name for name, _ in backbone.named_parameters())
    norms = {name: module for name, module in modules.items() if isinstance(module, _BatchNorm)}
    count = options.get("stages", 0)
    return [
        module
        for name, module in norms.items()
        if options.get("batch_norm", False) or (count and stages.get(f"{name}.weight", count) < count)
    ]


class FrozenBatchNorms(HookBase):
    """Hook: keep batch norms in evaluation mode. The start of training and each evaluation would switch it off."""

    def __init__(self, norms: list[nn.Module]):
        self._norms = norms

    def before_step(self) -> None:
        for norm in self._norms:
            norm.eval()


class LayerDecay:
    """The factor of a parameter's learning rate: `decay` for each stage of the backbone after its own.

    Args:
        names: of the parameters of the backbone, in its order.
        decay: above 0, up to 1.
        others: further factors, by full name.
    """

    def __init__(self, names: Iterable[str], decay: float, others: Callable[[str], float] | None = None):
        self._stages = backbone_stages(names)
        self._last = max(self._stages.values(), default=0)
        self._decay, self._others = decay, others

    def __call__(self, name: str) -> float:
        factor = 1.0 if self._others is None else self._others(name)
        stage = self._stages.get(name.removeprefix(PREFIX), self._last) if name.startswith(PREFIX) else self._last
        return factor * self._decay ** (self._last - stage)


def with_layer_decay(cfg: DictConfig, model: nn.Module) -> DictConfig | dict:
    """`cfg.optimizer` with the rates of `train.layer_decay`.

    Raises:
        ValueError: the decay is out of its range, the model has no backbone, or the optimizer takes no factors.
    """
    decay = cfg.train.get("layer_decay", 1.0)
    if decay == 1:
        return cfg.optimizer
    params = cfg.optimizer.params
    if not 0 < decay <= 1:
        raise ValueError(f"train.layer_decay={decay}: give a number above 0, up to 1")
    if not hasattr(model, "backbone") or "lr_factor_func" not in call_parameters(params.get("_target_")):
        raise ValueError(
            f"train.layer_decay={decay} needs a model with a backbone, and optimizer.params that take lr_factor_func, "
            "such as detectron2's get_default_optimizer_params"
        )
    others = instantiate(params.get("lr_factor_func"))
    factors = LayerDecay((name for name, _ in model.backbone.named_parameters()), decay, others)
    return {**cfg.optimizer, "params": {**params, "lr_factor_func": factors}}
