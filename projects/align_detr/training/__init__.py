"""What training needs beyond detectron2's trainers, written against public names of detectron2 and PyTorch."""

from .trainer import Trainer

__all__ = ["Trainer"]
