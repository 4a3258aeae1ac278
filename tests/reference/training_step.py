"""The straightforward formulation of a detector's training step.

The same model, with deformable attention by `grid_sample` per level, stacked (`deform_attn.py`), and Align-DETR's
losses layer by layer (`align_criterion.py`).
"""

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

from detrex.layers import multi_scale_deform_attn as attention
from torch import nn

from align_detr.modeling import AlignDINOCriterion, AlignSetCriterion


def _load(name: str):
    spec = importlib.util.spec_from_file_location(f"reference_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


deform_attn = _load("deform_attn").reference_deform_attn
align_criterion = _load("align_criterion").criterion

# The function that the layers call: the embedded engine's, or what detrex itself calls on a CPU.
ATTENTION = next(
    name for name in ("multi_scale_deformable_attn", "multi_scale_deformable_attn_pytorch") if hasattr(attention, name)
)


def plain_criterion(criterion: nn.Module):
    """The reference with the options of `criterion`, called in the same way; None if it has no such reference."""
    if not isinstance(criterion, AlignDINOCriterion | AlignSetCriterion) or criterion.match_number is not None:
        return None
    matcher = criterion.matcher
    return partial(
        align_criterion,
        alpha=criterion.alpha,
        gamma=criterion.gamma,
        tau=criterion.tau,
        k=criterion.k,
        kind=criterion.classification_loss.matched.__name__,
        costs={name: getattr(matcher, name) for name in ("cost_class", "cost_bbox", "cost_giou")},
    )


@contextmanager
def plain_formulation(model: nn.Module) -> Iterator[None]:
    """Inside the block, `model` trains in the straightforward way; a criterion without a reference stays as it is."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(attention, ATTENTION, deform_attn))
        losses = plain_criterion(model.criterion)
        if losses is not None:
            stack.enter_context(patch.object(model.criterion, "forward", losses))
        yield
