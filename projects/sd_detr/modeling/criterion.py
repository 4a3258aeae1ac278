"""The third switch: Align-DETR's losses, or Conditional DETR's."""

from detrex.modeling import SetCriterion
from torch import Tensor

from align_detr.modeling import AlignSetCriterion


class SDSetCriterion(AlignSetCriterion):
    """`AlignSetCriterion` that can be told to be `SetCriterion`.

    Args:
        align: tie the scores to the boxes' quality. Otherwise matching is one-to-one in every layer and the
            classification loss is the focal loss, of which `alpha` and `gamma` then are; `k`, `tau`, `match_number` and
            `loss_class_type` have no effect.
        options: `AlignSetCriterion`'s.
    """

    def __init__(self, align: bool = True, **options):
        super().__init__(**options)
        self.align = align

    def forward(self, outputs: dict, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses `loss_{class,bbox,giou}` of the last layer and `..._0` to `..._{L-2}` of those before."""
        return super().forward(outputs, targets) if self.align else SetCriterion.forward(self, outputs, targets)
