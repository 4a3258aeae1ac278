from .backbone import Backbone
from .resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from .vit import SimpleFeaturePyramid, ViT, get_vit_lr_decay_rate

__all__ = [
    "Backbone",
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "ResNet",
    "SimpleFeaturePyramid",
    "ViT",
    "get_vit_lr_decay_rate",
]
