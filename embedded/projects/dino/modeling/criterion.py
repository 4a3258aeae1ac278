"""Criterion of DINO."""

from collections.abc import Mapping

import torch
from projects.detr_common import TwoStageCriterion
from projects.detr_common.criterion import Targets
from torch import Tensor

_NAMES = {"class": ("loss_class",), "boxes": ("loss_bbox", "loss_giou")}


class DINOCriterion(TwoStageCriterion):
    """`TwoStageCriterion` with the losses of denoising queries. For the arguments see `TwoStageCriterion`."""

    def forward(self, outputs: Mapping, targets: Targets, dn_metas: Mapping | None = None) -> dict[str, Tensor]:
        """Return the losses of `TwoStageCriterion.matched_losses` and of `compute_dn_loss`."""
        num_boxes = self.normalizer(outputs, targets)
        losses = self.matched_losses(outputs, targets, num_boxes)
        return losses | self.compute_dn_loss(dn_metas, targets, len(outputs.get("aux_outputs", ())), num_boxes)

    def compute_dn_loss(
        self, dn_metas: Mapping | None, targets: Targets, aux_num: int, num_boxes: float | Tensor
    ) -> dict[str, Tensor]:
        """Losses of denoising queries, suffixes `_dn`, `_dn_0` …, divided by `num_boxes` and by the number of groups.

        Args:
            dn_metas: `output_known_lbs_bboxes` (predictions of the denoising queries), `dn_num` (groups) and
                `single_padding` (queries per group). Object j of an image belongs to query g·single_padding + j of
                every group g; the other queries are negatives. None gives zero losses, so that all processes have the
                same keys.
            aux_num: number of intermediate decoder layers.
        """
        if dn_metas is None:
            zero = torch.zeros((), device=targets[0]["labels"].device)
            suffixes = ["_dn", *(f"_dn_{i}" for i in range(aux_num))]
            return {name + suffix: zero.clone() for s in self.losses for name in _NAMES[s] for suffix in suffixes}

        groups, group_size = int(dn_metas["dn_num"]), int(dn_metas["single_padding"])
        pairs = [denoising_pairs(len(t["labels"]), groups, group_size, t["labels"].device) for t in targets]
        predictions = dn_metas["output_known_lbs_bboxes"]
        losses = self.losses_given(predictions, targets, pairs, num_boxes * groups, "_dn")
        for i, layer in enumerate(predictions.get("aux_outputs", ())):
            losses |= self.losses_given(layer, targets, pairs, num_boxes * groups, f"_dn_{i}")
        return losses


def denoising_pairs(objects: int, groups: int, group_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the positive denoising queries of an image and their objects: two (groups * objects,) int64 tensors."""
    index = torch.arange(objects, device=device)
    first = torch.arange(groups, device=device)[:, None] * group_size
    return (first + index).flatten(), index.repeat(groups)
