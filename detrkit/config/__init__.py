"""Configs: load them by name or path, list them, compare two of them."""
