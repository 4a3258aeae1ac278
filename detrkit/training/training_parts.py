"""Parts of detectors that only training needs. Inference and exported weights leave them out."""

from collections.abc import Mapping

from torch import Tensor, nn

TRAINING_PARTS = ("collaboration",)  # attributes of a detector; Co-DETR's auxiliary heads


def is_training_part(name: str) -> bool:
    """Whether a tensor of a detector's state dict belongs to a training part."""
    return name.partition(".")[0] in TRAINING_PARTS


def without_training_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the tensors of training parts."""
    return {name: tensor for name, tensor in state.items() if not is_training_part(name)}


def drop_training_parts(model: nn.Module) -> nn.Module:
    """Remove the training parts from `model` in place, and return it. Its detections stay the same."""
    for name in TRAINING_PARTS:
        if hasattr(model, name):
            setattr(model, name, None)
    return model
