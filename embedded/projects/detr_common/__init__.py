"""Shared parts of the embedded DETR detectors: batches, boxes, transformers, heads, criteria.

| module | content |
| --- | --- |
| `backbones` | timm backbones in configs: freezing, normalisation, weights |
| `batch` | padding masks, features of images of different sizes |
| `boxes` | training targets from instances, detections from predictions |
| `detector` | `Detector`, the base class: images to weighted losses or detections |
| `pyramid` | token sequence of a feature pyramid, positions of its tokens |
| `single_scale` | `SingleScaleDetector`, on one feature map |
| `dense` | encoder, decoder and transformer on dense attention to one feature map |
| `deformable` | encoder, decoder and transformer on multi-scale deformable attention |
| `heads` | class and box heads, prediction dictionaries |
| `criterion` | losses of two-stage detectors, `loss_weights` for configs |
| `norms` | `layer_norm` for configs |
| `optim` | `lr_factors` for configs |
| `queries` | `all_queries` for configs |
| `timm_features` | feature maps and published weights of timm's models, for configs |
"""

from .backbones import freeze_timm, timm_pixel_mean, timm_pixel_std
from .batch import extract_features, padding_mask, resize_mask
from .boxes import detections_from_predictions, targets_from_instances
from .criterion import TwoStageCriterion, box_normalizer, loss_weights
from .deformable import (
    DeformableDecoder,
    DeformableEncoder,
    DeformableTransformer,
    deformable_decoder_layer,
    deformable_encoder_layer,
)
from .dense import ConditionalDecoder, DenseEncoder, DenseTransformer, Masks
from .detector import Detector
from .heads import box_head, class_head, predict_layers, prediction_dict
from .norms import layer_norm
from .optim import lr_factors
from .pyramid import (
    TokenPyramid,
    encoder_proposals,
    flatten_pyramid,
    gather_tokens,
    reference_points,
    token_centers,
    top_tokens,
    valid_ratio,
)
from .queries import all_queries
from .single_scale import SingleScaleDetector
from .timm_features import timm_feature_names, timm_feature_shapes, timm_indices

__all__ = [
    "ConditionalDecoder",
    "DeformableDecoder",
    "DeformableEncoder",
    "DeformableTransformer",
    "DenseEncoder",
    "DenseTransformer",
    "Detector",
    "Masks",
    "SingleScaleDetector",
    "TokenPyramid",
    "TwoStageCriterion",
    "all_queries",
    "box_head",
    "box_normalizer",
    "class_head",
    "deformable_decoder_layer",
    "deformable_encoder_layer",
    "detections_from_predictions",
    "encoder_proposals",
    "extract_features",
    "flatten_pyramid",
    "freeze_timm",
    "gather_tokens",
    "layer_norm",
    "loss_weights",
    "lr_factors",
    "padding_mask",
    "predict_layers",
    "prediction_dict",
    "reference_points",
    "resize_mask",
    "targets_from_instances",
    "timm_feature_names",
    "timm_feature_shapes",
    "timm_indices",
    "timm_pixel_mean",
    "timm_pixel_std",
    "token_centers",
    "top_tokens",
    "valid_ratio",
]
