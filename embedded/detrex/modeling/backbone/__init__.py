from .eva_02 import EVA02_ViT
from .resnet import BasicStem, ResNet, make_stage
from .timm_backbone import TimmBackbone

__all__ = ["BasicStem", "EVA02_ViT", "ResNet", "TimmBackbone", "make_stage"]
