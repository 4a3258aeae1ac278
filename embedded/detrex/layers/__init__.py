"""Building blocks of DETR-style detectors."""

from detectron2.layers import ShapeSpec

from .attention import ConditionalCrossAttention, ConditionalSelfAttention, MultiheadAttention
from .box_ops import box_cxcywh_to_xyxy, box_iou, box_xyxy_to_cxcywh, generalized_box_iou
from .conv import ConvNormAct
from .mlp import FFN, MLP
from .multi_scale_deform_attn import MultiScaleDeformableAttention, multi_scale_deformable_attn_pytorch
from .position_embedding import PositionEmbeddingLearned, PositionEmbeddingSine, get_sine_pos_embed
from .transformer import BaseTransformerLayer, TransformerLayerSequence

__all__ = [
    "FFN",
    "MLP",
    "BaseTransformerLayer",
    "ConditionalCrossAttention",
    "ConditionalSelfAttention",
    "ConvNormAct",
    "MultiScaleDeformableAttention",
    "MultiheadAttention",
    "PositionEmbeddingLearned",
    "PositionEmbeddingSine",
    "ShapeSpec",
    "TransformerLayerSequence",
    "box_cxcywh_to_xyxy",
    "box_iou",
    "box_xyxy_to_cxcywh",
    "generalized_box_iou",
    "get_sine_pos_embed",
    "multi_scale_deformable_attn_pytorch",
]
