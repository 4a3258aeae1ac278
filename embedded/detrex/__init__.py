"""The parts of detrex that this project touches, in plain PyTorch: nothing to compile, no CUDA needed."""

__version__ = "0.5+embedded"
