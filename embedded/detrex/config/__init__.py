"""Shared config files, and helpers for configs."""

from .config import get_config, try_get_key

__all__ = ["get_config", "try_get_key"]
