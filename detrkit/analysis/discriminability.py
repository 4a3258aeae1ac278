"""How well the encoder's features tell objects from background: Co-DETR's IoF-IoB curve (arXiv 2211.12860).

A place scores by the length of its feature vector: the L2 norm over the channels of each level, as a share of the
level's greatest in the image, mean over the levels. For every threshold, IoF is the share of the objects' area that
scores above it, and IoB that of the background.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELL = 4  # pixels of the model's input; all models are compared on one grid
BINS = 500  # of the score; after a norm, features differ little in length
FOREGROUND, BACKGROUND = 0, 1


@contextmanager
def encoder_maps(model: nn.Module) -> Iterator[list[Tensor]]:
    """The list of the encoder's feature maps (B, D, H_l, W_l) of the model's latest call in the meantime. It stays
    empty if the model has no `transformer` with an `encoder`, or one that is called otherwise than DETR detectors do.
    """
    maps: list[Tensor] = []
    inputs: list[Sequence[Tensor] | Tensor] = []
    transformer = getattr(model, "transformer", None)
    encoder = getattr(transformer, "encoder", None)

    def on_transformer(module: nn.Module, args: tuple) -> None:
        inputs[:] = args[:1]

    def on_encoder(module: nn.Module, args: tuple, tokens: Tensor) -> None:
        if not inputs:
            return
        one_level = isinstance(inputs[0], Tensor)
        levels = [inputs[0]] if one_level else inputs[0]
        tokens = tokens.permute(1, 2, 0) if one_level else tokens.transpose(1, 2)  # whose batch comes second, first
        sizes = [tuple(level.shape[-2:]) for level in levels]
        parts = tokens.detach().split([height * width for height, width in sizes], dim=2)
        maps[:] = [part.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]

    handles = []
    if isinstance(encoder, nn.Module):
        handles = [
            transformer.register_forward_pre_hook(on_transformer),
            encoder.register_forward_hook(on_encoder),
        ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def place_scores(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """(B, h, w) scores in [0, 1] on a grid of `CELL` pixels, of maps (B, D, H_l, W_l) of images without padding, whose
    (height, width) is `size`."""
    grid = [-(-side // CELL) for side in size]
    scores = []
    for level in maps:
        length = level.float().norm(dim=1, keepdim=True)
        length = length / length.amax((2, 3), keepdim=True).clamp(min=torch.finfo(length.dtype).tiny)
        scores.append(F.interpolate(length, grid, mode="bilinear", align_corners=False)[:, 0])
    return torch.stack(scores).mean(0)


@torch.no_grad()
def count_places(scores: Tensor, targets: Sequence[dict[str, Tensor]]) -> np.ndarray:
    """(B, 2, BINS) int: how many places of objects, and of the background, score how high.

    Args:
        scores: (B, h, w), of `place_scores`.
        targets: per image `boxes` (G, 4), cxcywh in [0, 1]. A place whose centre is in any of them is of an object.
    """
    height, width = scores.shape[-2:]
    y = (torch.arange(height, device=scores.device) + 0.5)[:, None] / height
    x = (torch.arange(width, device=scores.device) + 0.5) / width
    position = (scores * BINS).long().clamp(max=BINS - 1)
    counts = []
    for place, target in zip(position, targets, strict=True):
        cx, cy, w, h = (side[:, None, None] for side in target["boxes"].to(scores.device).unbind(-1))
        inside = (((x - cx).abs() <= w / 2) & ((y - cy).abs() <= h / 2)).any(0)
        kinds = torch.where(inside, FOREGROUND, BACKGROUND) * BINS + place
        counts.append(torch.bincount(kinds.flatten(), minlength=2 * BINS).view(2, BINS))
    return torch.stack(counts).cpu().numpy()


def curve(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoF and IoB (BINS + 1,), from a threshold above all scores to one below; `counts` (2, BINS) of all images."""
    above = np.concatenate([np.zeros((2, 1)), counts[:, ::-1].cumsum(-1)], axis=1)
    with np.errstate(invalid="ignore"):
        iof, iob = above / counts.sum(-1, keepdims=True)
    return iof, iob


def discriminability(counts: np.ndarray) -> float:
    """Area under the curve of IoF over IoB: how often a location of an object scores higher than one of the background.

    0.5 means no difference; nan if there is only one of both.

    Args:
        counts: histograms (2, BINS) of object and background.
    """
    iof, iob = curve(counts)
    return float(np.sum((iob[1:] - iob[:-1]) * (iof[1:] + iof[:-1]) / 2))
