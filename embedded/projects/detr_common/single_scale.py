"""Base class of detectors on one feature map."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from detectron2.structures import Instances
from detrex.utils import inverse_sigmoid
from torch import Tensor, nn

from .batch import extract_features
from .detector import Detector
from .heads import box_head, class_head, prediction_dict


class SingleScaleDetector(Detector):
    """Backbone, projection of its last map, transformer. Subclasses add queries and heads.

    Args:
        backbone: maps normalised images (B, 3, H, W) to a dict of feature maps.
        in_features: names of the maps; only the last one is used.
        in_channels: channels of this map.
        position_embedding: maps padding masks (B, H, W) to embeddings (B, embed_dim, H, W).
        transformer: called with map, mask, queries and position embedding. Returns the states (L, B, N, D) of the
            decoder layers, and the boxes (…, B, N, 4) or points (…, B, N, 2), in [0, 1], that the box head refines.
        embed_dim: channels of queries and tokens.
        criterion: called as `criterion(outputs, targets)`; `criterion.weight_dict` scales its losses.
        aux_loss: supervise the intermediate decoder layers too.
        inverse_sigmoid_eps: see `DeformableDecoder`.

    For the other arguments see `Detector`.
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
            raise ValueError(
                f"in_channels={in_channels}, but the backbone's {in_features[-1]} has {channels} channels: "
                f"set in_channels={channels}"
            )
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
        """Add a class head and a box head, shared by all decoder layers."""
        self.class_embed = class_head(embed_dim, num_classes)
        self.bbox_embed = box_head(embed_dim)
        self.num_classes = num_classes

    def queries(self) -> Tensor:
        """Return the queries (N, …) for the transformer."""
        raise NotImplementedError(f"{type(self).__name__} must implement queries()")

    def forward(self, batched_inputs: Sequence[Mapping]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Return weighted losses in training, else detections.

        Args:
            batched_inputs: per image `image` (3, H, W); in training `instances` with `gt_boxes` and `gt_classes`; at
                inference optionally `height` and `width`, the size of the detections' image.
        """
        images = self.preprocess_image(batched_inputs)
        (features,), (mask,) = extract_features(self._features, images, exact=not self.training)
        states, starts = self.transformer(features, mask, self.queries(), self.position_embedding(mask))
        offsets = self.bbox_embed(states)
        logits = inverse_sigmoid(starts, self.inverse_sigmoid_eps)
        # A reference point has no size: width and height come from the box head only.
        boxes = (offsets + F.pad(logits, (0, 4 - starts.shape[-1]))).sigmoid()
        outputs = prediction_dict(self.class_embed(states), boxes, self.aux_loss)
        if not self.training:
            return self.detect(outputs, images, batched_inputs)
        targets = self.prepare_targets([x["instances"] for x in batched_inputs])
        return self.weigh(self.criterion(outputs, targets))

    def _features(self, images: Tensor) -> list[Tensor]:
        return [self.input_proj(self.backbone(images)[self.in_features[-1]])]
