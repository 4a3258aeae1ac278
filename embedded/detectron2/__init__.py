"""The parts of detectron2 that this project touches, for machines where detectron2 itself does not install."""

__version__ = "0.6+embedded"
