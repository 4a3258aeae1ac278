"""Mixed matching: many-to-one in the intermediate layers, one-to-one in the last (arXiv 2304.07527, section 3.3)."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from detrex.modeling import HungarianMatcher
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .losses import iou_and_giou


@dataclass
class GroundTruth:
    """All ground truths of a batch, image by image: M in total, `sizes[i]` in image i."""

    labels: Tensor  # (M,) int64
    boxes: Tensor  # (M, 4) float32, cxcywh in [0, 1]
    image: Tensor  # (M,) int64, index of the image
    position: Tensor  # (M,) int64, index within the image
    sizes: list[int]

    @classmethod
    def from_targets(cls, targets: list[dict[str, Tensor]]) -> "GroundTruth":
        """From detrex's targets: per image a dict of `labels` (G,) and `boxes` (G, 4), cxcywh in [0, 1]."""
        labels = torch.cat([t["labels"] for t in targets])
        boxes = torch.cat([t["boxes"] for t in targets]).float()
        sizes = [len(t["labels"]) for t in targets]
        count = torch.tensor(sizes)
        image = torch.repeat_interleave(count)
        position = torch.arange(len(labels)) - (count.cumsum(0) - count)[image]
        image, position = torch.stack([image, position]).to(labels.device, non_blocking=True)
        return cls(labels, boxes, image, position, sizes)


@dataclass
class LayerStack:
    """Outputs of equal shape, stacked: L layers, B images, N queries, C classes."""

    logits: Tensor  # (L, B, N, C)
    boxes: Tensor  # (L, B, N, 4), cxcywh in [0, 1]
    suffixes: list[str]  # of the names of each layer's losses
    match_numbers: list[int]  # k of each layer
    class_agnostic: list[bool]  # True where every ground truth counts as class 0: class-agnostic proposals

    def labels(self, ground_truth: GroundTruth) -> Tensor:
        """Return the target classes of each layer, (L, M) int64."""
        agnostic = torch.tensor(self.class_agnostic).to(self.logits.device, non_blocking=True)
        return ground_truth.labels.masked_fill(agnostic[:, None], 0)


class Pairs(NamedTuple):
    """P matched pairs of a `LayerStack`, each field (P,) int64; `object` indexes the `GroundTruth` of the batch."""

    layer: Tensor
    image: Tensor
    query: Tensor
    object: Tensor


class MixedMatcher(HungarianMatcher):
    """HungarianMatcher's cost, with every ground truth matched to up to k queries of its own image.

    Image i repeats each of its G_i ground truths k_i = clamp(floor(N / (2 G_i)), 1, k) times and solves one linear
    assignment. Every ground truth gets at least one query while G_i <= N; with G_i > N, N of them get one.

    Args:
        cost_class, cost_bbox, cost_giou: weights of the class, L1 and GIoU costs.
        cost_class_type: "focal_loss_cost" or "ce_cost".
        alpha, gamma: of the focal cost.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        cost_class_type: str = "focal_loss_cost",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ):
        super().__init__(cost_class, cost_bbox, cost_giou, cost_class_type, alpha, gamma)
        self.cost_class, self.cost_bbox, self.cost_giou = cost_class, cost_bbox, cost_giou
        self.cost_class_type, self.alpha, self.gamma = cost_class_type, alpha, gamma

    @torch.no_grad()
    def forward(
        self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]], k: int = 1
    ) -> list[tuple[Tensor, Tensor]]:
        """Match one layer.

        Args:
            outputs: `pred_logits` (B, N, C) and `pred_boxes` (B, N, 4), cxcywh in [0, 1].
            targets: per image `labels` (G,) and `boxes` (G, 4), cxcywh in [0, 1].
            k: the largest number of queries per ground truth.

        Returns:
            For each image the query indices and the ground-truth indices of its pairs, int64, on the CPU.
        """
        ground_truth = GroundTruth.from_targets(targets)
        logits, boxes = outputs["pred_logits"][None].float(), outputs["pred_boxes"][None].float()
        stack = LayerStack(logits, boxes, suffixes=[""], match_numbers=[k], class_agnostic=[False])
        _, image, query, index = self._assign([stack], ground_truth)[0]
        first = np.cumsum([0, *ground_truth.sizes])
        return [
            (torch.from_numpy(query[image == i]), torch.from_numpy(index[image == i] - first[i]))
            for i in range(len(targets))
        ]

    @torch.no_grad()
    def match_layers(self, stacks: list[LayerStack], ground_truth: GroundTruth) -> list[Pairs]:
        """Match every layer of every stack with a single device-to-host copy of all their costs."""
        device = ground_truth.labels.device
        return [
            Pairs(*torch.from_numpy(indices).to(device, non_blocking=True))
            for indices in self._assign(stacks, ground_truth)
        ]

    def cost(self, stack: LayerStack, ground_truth: GroundTruth) -> Tensor:
        """Return the cost of each ground truth with each query of its image, (L, M, N)."""
        layers = torch.arange(len(stack.logits), device=stack.logits.device)[:, None]
        labels = stack.labels(ground_truth)
        if self.cost_class_type == "ce_cost":
            cost_class = -stack.logits.softmax(-1)[layers, ground_truth.image, :, labels]
        else:
            score = stack.logits[layers, ground_truth.image, :, labels].sigmoid()
            positive = self.alpha * (1 - score) ** self.gamma * -(score + 1e-8).log()
            negative = (1 - self.alpha) * score**self.gamma * -(1 - score + 1e-8).log()
            cost_class = positive - negative

        # One contiguous plane for each coordinate: the operations below are faster on these.
        planes = stack.boxes.movedim(-1, 0).index_select(2, ground_truth.image)
        boxes, targets = planes.movedim(0, -1), ground_truth.boxes[:, None]
        cost_bbox = (boxes - targets).abs().sum(-1)
        _, giou = iou_and_giou(boxes, targets)
        return self.cost_class * cost_class + self.cost_bbox * cost_bbox - self.cost_giou * giou

    def _assign(self, stacks: list[LayerStack], ground_truth: GroundTruth) -> list[np.ndarray]:
        """Solve all assignments; for each stack return the four fields of its `Pairs`, (4, P) int64."""
        costs = [self.cost(stack, ground_truth) for stack in stacks]
        on_host = torch.cat([cost.flatten() for cost in costs]).cpu()
        if not torch.isfinite(on_host).all():
            if self.training:  # the loss will not be finite either; the trainer reports that with more detail
                on_host = on_host.nan_to_num(0, 0, 0)
            else:
                raise ValueError(
                    "the matching cost is not finite: the model predicts NaN or Inf, or a ground-truth box holds one; "
                    "lower the learning rate, check the annotations, or train without float16"
                )
        split = on_host.split([cost.numel() for cost in costs])
        first = np.cumsum([0, *ground_truth.sizes])
        problems = [  # (stack, layer, image, cost (G, N), k)
            (s, layer, image, cost[layer, first[image] : first[image + 1]], k)
            for s, (stack, part) in enumerate(zip(stacks, split, strict=True))
            for cost in [part.numpy().reshape(costs[s].shape)]
            for layer, k in enumerate(stack.match_numbers)
            for image, size in enumerate(ground_truth.sizes)
            if size
        ]
        solved = _solvers().map(lambda problem: assign(*problem[3:]), problems)
        fields: list[list[np.ndarray]] = [[np.empty((4, 0), np.int64)] for _ in stacks]
        for (s, layer, image, *_), (index, query) in zip(problems, solved, strict=True):
            constant = np.full_like(query, layer), np.full_like(query, image)
            fields[s].append(np.stack([*constant, query, index + first[image]]))
        return [np.concatenate(parts, axis=1) for parts in fields]


def assign(cost: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Match one image; return ground-truth and query indices of the pairs, sorted by query.

    Args:
        cost: (G, N), finite.
        k: the largest number of queries per ground truth. It is lowered, not below 1, so that at most half of the
            queries are matched.
    """
    num_objects, num_queries = cost.shape
    repeats = max(1, min(k, num_queries // (2 * num_objects)))
    rows, queries = linear_sum_assignment(cost.repeat(repeats, axis=0))
    order = queries.argsort()
    return rows[order] // repeats, queries[order]


@cache
def _solvers() -> ThreadPoolExecutor:
    """Threads for SciPy's solver, which releases the GIL."""
    return ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="assignment")
