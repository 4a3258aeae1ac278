from .resnet import BasicStem, ResNet, make_stage
from .timm_backbone import TimmBackbone

__all__ = ["BasicStem", "ResNet", "TimmBackbone", "make_stage"]
