"""The parts of detrex that this project uses, in PyTorch: no compilation, no CUDA."""

__version__ = "0.5+embedded"
