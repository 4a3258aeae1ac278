"""Criterion of SD-DETR: Align-DETR's losses, or Conditional DETR's."""

from detrex.modeling import SetCriterion
from torch import Tensor

from align_detr.modeling import AlignSetCriterion


class SDSetCriterion(AlignSetCriterion):
    """`AlignSetCriterion`, or `SetCriterion` with `align=False`.

    Args:
        align: use Align-DETR's matching and losses. Otherwise matching is one-to-one in every layer, and the
            classification loss is the focal loss with `alpha` and `gamma`; `k`, `tau`, `match_number` and
            `loss_class_type` have no effect.
        options: options of `AlignSetCriterion`.
    """

    def __init__(self, align: bool = True, **options):
        super().__init__(**options)
        self.align = align

    def forward(self, outputs: dict, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses `loss_{class,bbox,giou}` of the last layer, and `..._0` to `..._{L-2}` of the earlier ones."""
        return super().forward(outputs, targets) if self.align else SetCriterion.forward(self, outputs, targets)
