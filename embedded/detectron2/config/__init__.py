"""Lazy configs: Python files with dicts that describe objects; `instantiate` builds them."""

from .instantiate import instantiate
from .lazy import LazyCall, LazyConfig

__all__ = ["LazyCall", "LazyConfig", "instantiate"]
