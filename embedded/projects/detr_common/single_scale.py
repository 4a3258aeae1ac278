"""What detectors on one feature map have in common."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from detectron2.structures import Instances
from detrex.utils import inverse_sigmoid
from torch import Tensor, nn

from .batch import extract_features
from .detector import Detector
from .heads import box_head, class_head, prediction_dict


class SingleScaleDetector(Detector):
    """Backbone, projection of its last map, transformer. Subclasses add their queries, and then the heads.

    Args:
        backbone: normalised images (B, 3, H, W) to a dictionary of feature maps.
        in_features: names of the maps; the last one is used.
        in_channels: its channels.
        position_embedding: padding masks (B, H, W) to embeddings (B, embed_dim, H, W).
        transformer: (map, mask, queries, position embedding) to states (L, B, N, D) of the decoder layers and the boxes
            (…, B, N, 4) or points (…, B, N, 2), in [0, 1], that their predictions start from.
        embed_dim: channels of queries and tokens.
        criterion: called as `criterion(outputs, targets)`; `criterion.weight_dict` scales its losses.
        aux_loss: supervise the intermediate decoder layers too.
        inverse_sigmoid_eps: of the boxes or points that the box head moves, see `DeformableDecoder`.

    The other arguments are `Detector`'s.
    """

    def __init__(
        self,
        backbone: nn.Module,
        in_features: Sequence[str],
        in_channels: int,
        position_embedding: nn.Module,
        transformer: nn.Module,
        embed_dim: int,
        criterion: nn.Module,
        aux_loss: bool,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        select_box_nums_for_evaluation: int,
        device: str,
        inverse_sigmoid_eps: float = 1e-3,
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
        self.aux_loss = aux_loss
        self.inverse_sigmoid_eps = inverse_sigmoid_eps

    def add_heads(self, embed_dim: int, num_classes: int) -> None:
        """Class and box head, the same for all decoder layers."""
        self.class_embed = class_head(embed_dim, num_classes)
        self.bbox_embed = box_head(embed_dim)
        self.num_classes = num_classes

    def queries(self) -> Tensor:
        """(N, …), as the transformer takes them."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its queries are")

    def forward(self, batched_inputs: Sequence[Mapping]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Weighted losses in training, else detections.

        Args:
            batched_inputs: per image `image` (3, H, W), in training `instances` with `gt_boxes` and `gt_classes`,
                otherwise optionally `height` and `width`, to which the detections are scaled.
        """
        images = self.preprocess_image(batched_inputs)
        (features,), (mask,) = extract_features(self._features, images, exact=not self.training)
        states, starts = self.transformer(features, mask, self.queries(), self.position_embedding(mask))
        offsets = self.bbox_embed(states)
        logits = inverse_sigmoid(starts, self.inverse_sigmoid_eps)
        # A point moves the box's centre alone.
        boxes = (offsets + F.pad(logits, (0, 4 - starts.shape[-1]))).sigmoid()
        outputs = prediction_dict(self.class_embed(states), boxes, self.aux_loss)
        if not self.training:
            return self.detect(outputs, images, batched_inputs)
        targets = self.prepare_targets([x["instances"] for x in batched_inputs])
        return self.weigh(self.criterion(outputs, targets))

    def _features(self, images: Tensor) -> list[Tensor]:
        return [self.input_proj(self.backbone(images)[self.in_features[-1]])]
