"""The DAB-DETR detector."""

from collections.abc import Sequence

from projects.detr_common import SingleScaleDetector
from torch import Tensor, nn

from .anchors import AnchorBoxes


class DABDETR(SingleScaleDetector):
    """DAB-DETR: queries are anchor boxes that each decoder layer refines (arXiv 2201.12329).

    Args:
        transformer: a `DabDetrTransformer`.
        num_classes: number of object classes; there is no background class.
        num_queries: number of anchor boxes.
        freeze_anchor_box_centers: see `AnchorBoxes`.

    For the other arguments see `SingleScaleDetector`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        in_features: Sequence[str],
        in_channels: int,
        position_embedding: nn.Module,
        transformer: nn.Module,
        embed_dim: int,
        num_classes: int,
        num_queries: int,
        criterion: nn.Module,
        aux_loss: bool = True,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        freeze_anchor_box_centers: bool = True,
        select_box_nums_for_evaluation: int = 300,
        device: str = "auto",
        *,
        inverse_sigmoid_eps: float = 1e-3,
    ):
        super().__init__(
            backbone,
            in_features,
            in_channels,
            position_embedding,
            transformer,
            embed_dim,
            criterion,
            aux_loss,
            pixel_mean,
            pixel_std,
            select_box_nums_for_evaluation,
            device,
            inverse_sigmoid_eps,
        )
        self.anchor_box_embed = AnchorBoxes(num_queries, freeze_anchor_box_centers)
        self.add_heads(embed_dim, num_classes)
        transformer.decoder.bbox_embed = self.bbox_embed

    def queries(self) -> Tensor:
        """Return the logits of the anchor boxes, (N, 4)."""
        return self.anchor_box_embed()
