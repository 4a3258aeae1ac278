"""DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR (Liu et al., ICLR 2022, arXiv 2201.12329)."""

from .dab_detr import DABDETR
from .transformer import DabDetrTransformer, DabDetrTransformerDecoder, DabDetrTransformerEncoder

__all__ = ["DABDETR", "DabDetrTransformer", "DabDetrTransformerDecoder", "DabDetrTransformerEncoder"]
