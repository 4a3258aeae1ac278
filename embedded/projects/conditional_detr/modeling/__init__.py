"""Conditional DETR for Fast Training Convergence (Meng et al., ICCV 2021, arXiv 2108.06152)."""

from .conditional_detr import ConditionalDETR
from .transformer import (
    ConditionalDetrTransformer,
    ConditionalDetrTransformerDecoder,
    ConditionalDetrTransformerEncoder,
)

__all__ = [
    "ConditionalDETR",
    "ConditionalDetrTransformer",
    "ConditionalDetrTransformerDecoder",
    "ConditionalDetrTransformerEncoder",
]
