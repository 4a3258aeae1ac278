"""How recorded backbones are compared: features, a loss of them, and gradient norms by parameter."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn


def flat(tree: object, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of nested dictionaries and lists by dotted name."""
    if isinstance(tree, Tensor):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {name: leaf for key, value in items for name, leaf in flat(value, f"{prefix}.{key}".lstrip(".")).items()}


def loss_of(features: dict[str, Tensor]) -> Tensor:
    """Sum over the features of mean(feature · linspace(-1, 1)), so that no gradient is zero by symmetry."""
    return sum((value * torch.linspace(-1, 1, value.numel()).view(value.shape)).mean() for value in features.values())


def assert_as_recorded(backbone: nn.Module, case: SimpleNamespace, image: int) -> None:
    """Compare names, features, loss and gradients of one image with the recording."""
    expected = case.output[image]
    features = backbone(case.input[image]["image"].float())
    assert list(features) == list(expected["features"])
    for name, value in features.items():
        torch.testing.assert_close(value, expected["features"][name], rtol=1e-4, atol=1e-4)
        shape = backbone.output_shape()[name]
        assert value.shape[1] == shape.channels
    loss = loss_of(features)
    torch.testing.assert_close(loss, expected["loss"], rtol=5e-4, atol=1e-6)
    loss.backward()
    norms = {name: p.grad.norm() for name, p in backbone.named_parameters() if p.grad is not None}
    recorded = flat(expected["grad_norms"])
    assert norms.keys() == recorded.keys()
    for name, norm in norms.items():
        torch.testing.assert_close(
            norm, recorded[name], rtol=5e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
