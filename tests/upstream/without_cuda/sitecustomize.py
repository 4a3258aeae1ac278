"""Lets detrex's hard-coded CUDA calls run where there is no GPU, from outside: what is sent to "cuda" stays where it
is, and detrex's own `tools/train_net.py`, nobody else, is told that CUDA is there. For the tests' processes.
"""

import sys

import torch

if not torch.cuda.is_available():
    tensor_to = torch.Tensor.to

    def stay(self, *args, **kwargs):
        return self

    def to(self, *args, **kwargs):
        target = kwargs.get("device", args[0] if args else None)
        is_cuda = not isinstance(target, torch.Tensor | torch.dtype) and str(target).startswith("cuda")
        return self if is_cuda else tensor_to(self, *args, **kwargs)

    def is_available() -> bool:
        return sys._getframe(1).f_code.co_filename.endswith("detrex/tools/train_net.py")

    torch.Tensor.to = to
    torch.Tensor.cuda = stay
    torch.nn.Module.cuda = stay
    torch.cuda.is_available = is_available
