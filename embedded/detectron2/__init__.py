"""The parts of detectron2 that this project uses, for machines without detectron2."""

__version__ = "0.6+embedded"
