"""Training on several datasets: how often each image comes, so that every dataset has its share of the draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog

from detrkit.datasets.annotations import same_classes, shortened

KEY = "train.dataset_shares"
RULES = {"size": float, "sqrt": math.sqrt, "equal": lambda size: 1.0}  # from a dataset's size to its weight


def load_datasets(source: Mapping[str, Any], names: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Load each dataset of a config on its own.

    Args:
        source: the node of `dataloader.train.dataset`, a call of `get_detection_dataset_dicts`.
        names: of its datasets.

    Raises:
        ValueError: the datasets have different classes, or one has no images.
    """
    parts = [list(instantiate({**source, "names": name})) for name in names]
    classes = [MetadataCatalog.get(name).get("thing_classes") or () for name in names]
    for name, own, part in zip(names, classes, parts, strict=True):
        if not same_classes(own, classes[0]):
            raise ValueError(
                f"{KEY}: the datasets to mix have different classes: {names[0]} {shortened(classes[0])}; {name} "
                f"{shortened(own)}: give all of them the same list of classes"
            )
        if not part:
            raise ValueError(f"{KEY}: {name} has no images: leave it out of dataloader.train.dataset.names")
    return parts


def dataset_shares(names: Sequence[str], sizes: Sequence[int], rule: str | Sequence[float]) -> list[float]:
    """The share of the draws that each dataset has; they add up to 1.

    Args:
        sizes: numbers of images, above 0.
        rule: "size", "sqrt" (of the size), "equal", or a number above 0 for each dataset.

    Raises:
        ValueError: `rule` is something else.
    """
    if not isinstance(rule, Sequence) or (isinstance(rule, str) and rule not in RULES):
        raise ValueError(f"{KEY}={rule}: give {', '.join(RULES)}, or a list of numbers such as [2,1]")
    if isinstance(rule, str):
        given = [RULES[rule](size) for size in sizes]
    else:
        given = list(rule)
        if len(given) != len(names):
            raise ValueError(
                f"{KEY}={given} has {len(given)} numbers for {len(names)} datasets ({', '.join(names)}): give one each"
            )
        if not all(type(value) in (int, float) and 0 < value < math.inf for value in given):
            raise ValueError(f"{KEY}={given}: give numbers above 0; leave a dataset out of the names for 0")
    return [value / sum(given) for value in given]


def mixing_factors(
    sizes: Sequence[int], shares: Sequence[float], factors: Sequence[float] | None = None
) -> list[float]:
    """How often each image comes in an epoch, on average. An epoch has as many draws as without the shares.

    Args:
        sizes: numbers of images of the datasets, whose images follow each other.
        shares: of `dataset_shares`.
        factors: how often each image would come without the shares; None for once. Within a dataset their ratios stay.
    """
    own = [1.0] * sum(sizes) if factors is None else list(factors)
    total, mixed, start = sum(own), [], 0
    for size, share in zip(sizes, shares, strict=True):
        part = own[start : start + size]
        scale = share * total / sum(part)
        mixed += [scale * factor for factor in part]
        start += size
    return mixed
