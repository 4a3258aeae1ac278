"""What the tensors of a file say of its model."""

from __future__ import annotations

from .files import WeightsFile
from .tables import Pattern


def rows(file: WeightsFile, name: str) -> int:
    """The length of a tensor.

    Raises:
        ValueError: the file does not have it.
    """
    if name not in file.state:
        raise ValueError(f"{file.path} lacks {name}")
    return len(file.state[name])


def stacks(file: WeightsFile, encoder: str, decoder: str) -> dict[str, int]:
    """The settings for the depth of encoder and decoder, and for the width of their feed-forward blocks.

    Args:
        encoder, decoder: pattern of the weight of a layer's first linear, `#` for the number of the layer.
    """
    settings = {}
    for part, pattern in (("encoder", encoder), ("decoder", decoder)):
        layers = [name for name, _ in Pattern(pattern).names_in(file.state)]
        if not layers:
            raise ValueError(f"{file.path} lacks {pattern.replace('#', '0')}")
        settings[f"model.transformer.{part}.num_layers"] = len(layers)
        settings[f"model.transformer.{part}.feedforward_dim"] = len(file.state[layers[0]])
    return settings
