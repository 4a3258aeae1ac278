"""Sheets that show where the branches of SD-DETR's decoder attend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detrex.layers import box_cxcywh_to_xyxy
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from detrkit.analysis import predict_layers
from detrkit.analysis.attention import AttentionMaps, branches, capture_attention
from detrkit.inference.demo import classes_of_outputs, find_images, output_paths, progress_of, read_all
from detrkit.inference.sources import load_named_config
from detrkit.training.loading import load_detector

PANEL = 2.6  # inches


def write_sheets(
    config: str, checkpoint: str, inputs: Sequence[str], output: Path, top: int = 3, overrides: Sequence[str] = ()
) -> tuple[int, list[str]]:
    """Write a sheet for each image file.

    Args:
        config: name or path of a config, or an exported .safetensors file.
        inputs: image files, folders and globs.
        output: folder of the sheets.
        top: detections of an image.

    Returns:
        The number of sheets, and the inputs that were left out.

    Raises:
        ValueError, OSError: the detector cannot be used, or has no such branches.
    """
    files, failed = find_images(inputs)
    targets = output_paths(files, output)
    cfg = load_named_config(config, overrides)
    model = load_detector(cfg, checkpoint)
    branches(getattr(getattr(model, "transformer", None), "decoder", nn.Module()))
    names = classes_of_outputs(cfg, checkpoint).names
    output.mkdir(parents=True, exist_ok=True)
    written = 0
    with progress_of(files, failed) as progress:
        for example in read_all(files, cfg, failed, progress):
            sheet(model, example, top, names).savefig(targets[example["file"]], dpi=110)
            progress.update()
            written += 1
    return written, failed


def sheet(model: nn.Module, example: dict, top: int, names: Sequence[str]) -> Figure:
    """The `top` best queries of an image in rows, the branches in columns."""
    with capture_attention(model) as maps:
        logits, boxes = predict_layers(model, [example])
    scores, labels = logits[-1, 0].sigmoid().max(-1)
    best = scores.topk(min(top, len(scores))).indices.tolist()
    height, width = example["pixels"].shape[:2]
    figure = Figure(figsize=(PANEL * len(maps.attention), PANEL * height / width * len(best) + 0.3), layout="tight")
    rows = figure.subplots(len(best), len(maps.attention), squeeze=False)
    for panels, query in zip(rows, best, strict=True):
        label = int(labels[query])
        title = f"{names[label]} {scores[query]:.2f}"
        corners = box_cxcywh_to_xyxy(boxes[-1, 0, query]).cpu() * torch.tensor([width, height, width, height])
        for axes, branch in zip(panels, maps.attention, strict=True):
            draw(axes, example["pixels"], maps, branch, query, corners)
            axes.set_title(f"{title}, {branch}", fontsize=8)
    return figure


def draw(axes, pixels: np.ndarray, maps: AttentionMaps, branch: str, query: int, corners: Tensor) -> None:
    height, width = pixels.shape[:2]
    frame = dict(extent=(0, width, height, 0))
    axes.imshow(pixels.mean(-1), cmap="gray", **frame)
    weights = maps.attention[branch][0, query].cpu().numpy()
    axes.imshow(weights / weights.max(), cmap="inferno", alpha=0.6, interpolation="bilinear", **frame)
    if branch in maps.points:
        x, y = maps.points[branch][0, query].cpu().numpy().T
        axes.plot(x * width, y * height, "o", color="#39d0ff", markeredgecolor="black", markersize=4)
    left, top, right, bottom = corners.tolist()
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white", linewidth=1.2))
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
