"""Repeat-factor sampling: images with rare classes come several times in an epoch (LVIS, arXiv 1908.03195)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler


def repeat_factors(images: Sequence[Mapping[str, Any]], threshold: float) -> list[float]:
    """How often each image comes in an epoch, on average, as detectron2 computes it.

    Args:
        images: dataset dicts; those without `annotations` count as images without objects.
        threshold: share of images below which a class is rare.
    """
    annotated = [{"annotations": image.get("annotations", ())} for image in images]
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(annotated, threshold).tolist()


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
