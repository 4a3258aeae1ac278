"""DINO: DETR with improved denoising anchor boxes (Zhang et al., ICLR 2023, arXiv 2203.03605)."""

from .criterion import DINOCriterion
from .dino import DINO
from .transformer import DINOTransformer, DINOTransformerDecoder, DINOTransformerEncoder

__all__ = ["DINO", "DINOCriterion", "DINOTransformer", "DINOTransformerDecoder", "DINOTransformerEncoder"]
