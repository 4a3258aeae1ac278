"""The detector, whose heads read a branch each."""

from functools import partial

from projects.conditional_detr.modeling import ConditionalDETR
from torch import Tensor, nn


class SDDETR(ConditionalDETR):
    """Conditional DETR whose class head reads one branch of the decoder and whose box head reads the other.

    Args:
        options: `ConditionalDETR`'s; the transformer is an `SDDetrTransformer`.
    """

    def __init__(self, **options):
        super().__init__(**options)
        if self.transformer.decoder.num_branches == 2:
            # The detector's own forward gives both heads all states; its keys are to stay as they are.
            for branch, head in enumerate((self.class_embed, self.bbox_embed)):
                head.register_forward_pre_hook(partial(_read_branch, branch))


def _read_branch(branch: int, head: nn.Module, arguments: tuple[Tensor]) -> Tensor:
    return arguments[0][..., branch, :]
