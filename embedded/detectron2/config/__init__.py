"""Lazy configs: Python files whose dictionaries say what to build, and are built only when asked to."""

from .instantiate import instantiate
from .lazy import LazyCall, LazyConfig

__all__ = ["LazyCall", "LazyConfig", "instantiate"]
