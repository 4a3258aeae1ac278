"""Show where the branches of SD-DETR's decoder attend.

    align-detr visualize-attention --config-file CONFIG --checkpoint FILE --input IMAGE|FOLDER|GLOB ... \\
        [--output FOLDER] [--top N] [key=value ...]

For each image a sheet with its best detections in rows and the class and the box branch side by side: the last layer's
attention, mean of its heads, the branch's salient points, and the detected box. Conditional DETR and DAB-DETR, whose
only branch does both, are shown too. `key=value` changes the config, such as `train.device=cpu`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detrex.layers import box_cxcywh_to_xyxy
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from tqdm import tqdm

from detrkit.analysis import predict_layers
from detrkit.analysis.attention import AttentionMaps, branches, capture_attention
from detrkit.commands.command_line import finish, take_overrides
from detrkit.commands.demo import classes_of_outputs, find_images, output_paths, read_all
from detrkit.config.load import load_config
from detrkit.training.loading import load_detector

PANEL = 2.6  # inches


def visualize(args: argparse.Namespace) -> bool:
    """Writes the sheets; returns whether every input was read."""
    if args.top < 1:
        raise ValueError("--top is at least 1")
    files, failed = find_images(args.input)
    targets = output_paths(files, args.output)
    cfg = load_config(args.config_file, args.opts)
    model = load_detector(cfg, args.checkpoint)
    branches(getattr(getattr(model, "transformer", None), "decoder", nn.Module()))
    names = classes_of_outputs(cfg, args.checkpoint).names
    args.output.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(files), unit="image", disable=None) as progress:

        def say(problem: str) -> None:
            progress.write(f"left out {problem}", file=sys.stderr)

        for problem in failed:
            say(problem)
        for example in read_all(files, cfg, failed, say, progress):
            sheet(model, example, args.top, names).savefig(targets[example["file"]], dpi=110)
            progress.update()
    print(f"{len(files) - sum(str(f) in failed for f in files)} sheets in {args.output}")
    return not failed


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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="CONFIG")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="weights: .pth or .safetensors")
    parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help="images, folders, quoted globs")
    parser.add_argument("--output", type=Path, default=Path("output/attention"), help="folder (default: %(default)s)")
    parser.add_argument("--top", type=int, default=3, help="detections of an image (default: %(default)s)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args(argv)
    take_overrides(args.input, args.opts)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    finish(lambda: visualize(args))


