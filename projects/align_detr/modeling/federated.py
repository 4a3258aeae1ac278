"""Federated loss: classification losses on a sample of the classes, for data such as LVIS."""

from collections.abc import Sequence

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

NEVER = -1e4  # a logit that leaves neither a loss nor a gradient


class FederatedClasses:
    """Classes that count in the classification loss of a batch (CenterNet2, arXiv 2103.07461, section 5.1).

    With 1203 classes, of which an image is checked for a few, most negatives are unverified, and rare classes get
    almost only negatives. The loss of a batch is therefore summed over a set S of classes:

        L = Σ_queries Σ_{c in S} loss(z_c, y_c),    S = classes of the batch's objects + sampled others, |S| ≥ `number`

    The others are sampled without replacement, with probabilities proportional to n_c^`power`; n_c is the number of
    training images with class c. The logits of classes outside of S have no gradient.

    Args:
        number: smallest size of S.
        dataset: a registered dataset whose metadata have `class_image_count`, as LVIS has once it is loaded; None: all
            classes are sampled alike.
        counts: n_c, one number per class, in place of `dataset`.
        power: exponent of n_c.

    Raises:
        ValueError: `number` is below 1.
    """

    def __init__(
        self,
        number: int = 50,
        dataset: str | None = None,
        counts: Sequence[float] | None = None,
        power: float = 0.5,
    ):
        if number < 1:
            raise ValueError(f"federated.number={number}: it must be at least 1")
        self.number, self.dataset, self.power = number, dataset, power
        self.counts = None if counts is None else torch.tensor(list(counts), dtype=torch.float32)

    def left_out(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return the classes outside of S, (C,) bool, for ground-truth labels (G,)."""
        present = torch.zeros(num_classes, dtype=torch.bool, device=labels.device).index_fill(0, labels, True)
        if self.number >= num_classes:
            return torch.zeros_like(present)
        log_weight = self.power * self._counts(num_classes).to(labels.device).clamp(min=1e-9).log()
        # The largest of log w + Gumbel noise: a weighted sample without replacement, and no synchronisation.
        noise = -torch.empty_like(log_weight).exponential_().log()
        order = (log_weight + noise).masked_fill(present, torch.inf).argsort(descending=True)
        chosen = torch.zeros_like(present).index_fill(0, order[: self.number], True)
        return ~(chosen | present)

    def mask(self, logits: Tensor, labels: Tensor, class_agnostic: Sequence[bool]) -> Tensor:
        """Replace the logits (L, B, N, C) of classes outside of S; layers with class-agnostic logits keep theirs."""
        left_out = self.left_out(labels, logits.shape[-1])
        applies = torch.tensor([not agnostic for agnostic in class_agnostic]).to(logits.device, non_blocking=True)
        return logits.masked_fill(applies[:, None, None, None] & left_out, NEVER)

    def _counts(self, num_classes: int) -> Tensor:
        if self.counts is None:
            self.counts = torch.ones(num_classes) if self.dataset is None else self._counts_of_dataset()
        if len(self.counts) != num_classes:
            raise ValueError(f"federated: there are counts of {len(self.counts)} classes, but {num_classes} logits")
        return self.counts

    def _counts_of_dataset(self) -> Tensor:
        counts = getattr(MetadataCatalog.get(self.dataset), "class_image_count", None)
        if counts is None:
            raise ValueError(
                f"federated.dataset={self.dataset}: its metadata have no class_image_count; give counts, or a dataset "
                "in LVIS's format that is loaded in training"
            )
        return torch.tensor([entry["image_count"] for entry in sorted(counts, key=lambda entry: entry["id"])]).float()
