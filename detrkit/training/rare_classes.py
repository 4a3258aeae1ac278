"""Repeat-factor sampling: images with rare classes come several times in an epoch (LVIS, arXiv 1908.03195)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def repeat_factors(images: Sequence[Mapping[str, Any]], threshold: float) -> list[float]:
    """How often each image comes in an epoch, on average.

    A class c that a share f(c) of the images has gets the factor max(1, sqrt(threshold / f(c))). An image gets the
    highest factor of its classes, or 1 without objects.

    Args:
        images: dataset dicts.
        threshold: share of images below which a class is rare.
    """
    classes = [{a["category_id"] for a in image.get("annotations", ())} for image in images]
    counts = Counter(label for labels in classes for label in labels)
    factors = {label: max(1.0, math.sqrt(threshold * len(images) / count)) for label, count in counts.items()}
    return [max((factors[label] for label in labels), default=1.0) for labels in classes]


def systematic_sample(factors: Sequence[float], offset: float) -> torch.Tensor:
    """Draw item i floor(r) or ceil(r) times, where r is its share of the draws; the number of draws is constant.

    Args:
        factors: expected number of draws of each item; their sum, rounded down, is the number of draws.
        offset: in [0, 1); a random one gives each item its share on average.

    Returns:
        (N,) int64, items in ascending order.
    """
    ends = torch.tensor(factors, dtype=torch.float64).cumsum(0)
    count = sample_size(factors)
    points = (torch.arange(count, dtype=torch.float64) + offset) * (ends[-1] / count)
    return torch.searchsorted(ends, points, right=True).clamp(max=len(factors) - 1)


def sample_size(factors: Sequence[float]) -> int:
    """Number of draws of `systematic_sample`."""
    return int(sum(factors) + 1e-6)
