"""The DAB-DETR detector."""

from collections.abc import Mapping, Sequence

from detectron2.structures import Instances
from detrex.utils import inverse_sigmoid
from projects.detr_common import Detector, box_head, class_head, extract_features, prediction_dict
from torch import Tensor, nn

from .anchors import AnchorBoxes


class DABDETR(Detector):
    """DETR whose queries are anchor boxes, refined from layer to layer (arXiv 2201.12329).

    Args:
        backbone: normalised images (B, 3, H, W) to a dictionary of feature maps.
        in_features: names of the maps; the last one is used.
        in_channels: its channels.
        position_embedding: padding masks (B, H, W) to embeddings (B, embed_dim, H, W).
        transformer: a `DabDetrTransformer`.
        embed_dim: channels of queries and tokens.
        num_classes: of objects; there is no background class.
        num_queries: anchor boxes.
        criterion: called as `criterion(outputs, targets)`; `criterion.weight_dict` scales its losses.
        aux_loss: supervise the intermediate decoder layers too.
        pixel_mean, pixel_std: per channel, in the units of the input images.
        freeze_anchor_box_centers: see `AnchorBoxes`.
        select_box_nums_for_evaluation: detections per image.
        device: see `Detector`.
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
    ):
        channels = backbone.output_shape()[in_features[-1]].channels
        if channels != in_channels:
            raise ValueError(f"in_channels={in_channels}, but the backbone's {in_features[-1]} has {channels} channels")
        if transformer.embed_dim != embed_dim:
            raise ValueError(f"embed_dim={embed_dim} differs from the transformer's embed_dim={transformer.embed_dim}")
        super().__init__(criterion, pixel_mean, pixel_std, select_box_nums_for_evaluation, device)
        self.backbone = backbone
        self.in_features = list(in_features)
        self.position_embedding = position_embedding
        self.input_proj = nn.Conv2d(in_channels, embed_dim, kernel_size=1)
        self.transformer = transformer
        self.anchor_box_embed = AnchorBoxes(num_queries, freeze_anchor_box_centers)
        self.class_embed = class_head(embed_dim, num_classes)
        self.bbox_embed = box_head(embed_dim)
        transformer.decoder.bbox_embed = self.bbox_embed
        self.num_classes = num_classes
        self.aux_loss = aux_loss

    def forward(self, batched_inputs: Sequence[Mapping]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Weighted losses in training, else detections.

        Args:
            batched_inputs: per image `image` (3, H, W), in training `instances` with `gt_boxes` and `gt_classes`,
                otherwise optionally `height` and `width`, to which the detections are scaled.
        """
        images = self.preprocess_image(batched_inputs)
        (features,), (mask,) = extract_features(self._features, images, exact=not self.training)
        states, starts = self.transformer(features, mask, self.anchor_box_embed(), self.position_embedding(mask))
        boxes = (self.bbox_embed(states) + inverse_sigmoid(starts)).sigmoid()
        outputs = prediction_dict(self.class_embed(states), boxes, self.aux_loss)
        if not self.training:
            return self.detect(outputs, images, batched_inputs)
        targets = self.prepare_targets([x["instances"] for x in batched_inputs])
        return self.weigh(self.criterion(outputs, targets))

    def _features(self, images: Tensor) -> list[Tensor]:
        return [self.input_proj(self.backbone(images)[self.in_features[-1]])]
