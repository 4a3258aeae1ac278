from .resnet import BasicStem, ResNet, make_stage

__all__ = ["BasicStem", "ResNet", "make_stage"]
