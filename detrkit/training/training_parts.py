"""Parts of detectors that only training needs: inference, and weights to share, do without them."""

from collections.abc import Mapping

from torch import Tensor, nn

TRAINING_PARTS = ("collaboration",)  # attributes of a detector; Co-DETR's auxiliary heads


def is_training_part(name: str) -> bool:
    """Whether a tensor of a detector's state dict belongs to one of them."""
    return name.partition(".")[0] in TRAINING_PARTS


def without_training_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other tensors of a state dict."""
    return {name: tensor for name, tensor in state.items() if not is_training_part(name)}


def drop_training_parts(model: nn.Module) -> nn.Module:
    """`model`, which has none of them any more: it detects as before, and no longer trains as its config says."""
    for name in TRAINING_PARTS:
        if hasattr(model, name):
            setattr(model, name, None)
    return model
