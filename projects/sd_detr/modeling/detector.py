"""SD-DETR detector: each head reads its own branch of the decoder."""

from functools import partial

from projects.conditional_detr.modeling import ConditionalDETR
from torch import Tensor, nn


class SDDETR(ConditionalDETR):
    """Conditional DETR whose class head reads the class branch and whose box head reads the box branch.

    Args:
        options: options of `ConditionalDETR`; the transformer is an `SDDetrTransformer`.
    """

    def __init__(self, **options):
        super().__init__(**options)
        if self.transformer.decoder.num_branches == 2:
            # ConditionalDETR.forward passes the states of both branches to both heads. Hooks keep the state-dict keys.
            for branch, head in enumerate((self.class_embed, self.bbox_embed)):
                head.register_forward_pre_hook(partial(_read_branch, branch))


def _read_branch(branch: int, head: nn.Module, arguments: tuple[Tensor]) -> Tensor:
    return arguments[0][..., branch, :]
