"""Overrides as they are written, for those who need few of them at once: `overrides` imports Hydra to parse them."""

from __future__ import annotations

from collections.abc import Sequence


def given_values(overrides: Sequence[str]) -> dict[str, str]:
    """Return the values of `key=value` by key, as text; the last one of a key counts."""
    return dict(text.split("=", 1) for text in overrides if "=" in text)
