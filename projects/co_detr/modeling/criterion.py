"""Criteria of Co-DETR: losses of the detector's queries and of positive queries."""

from torch import Tensor

from align_detr.modeling import AlignDINOCriterion, AlignHDETRCriterion
from align_detr.modeling.criterion import (
    Layer,
    Losses,
    Outputs,
    Targets,
    average_over_processes,
    decoder_layers,
    stack_layers,
)
from align_detr.modeling.matcher import GroundTruth, Pairs

from ..heads.base import NEVER
from ..ops import IGNORED

ALIGN_DETRS = ("ia_bce_loss", "align_loss")


def match_number(loss_class_type: str, k: int | None) -> int:
    """Return `k`, or its default: 2 with Align-DETR's two losses, else 1."""
    if k is not None:
        return k
    return 2 if loss_class_type in ALIGN_DETRS else 1


class PositiveLosses:
    """Mixin before a criterion of `align_detr`: losses of queries whose ground truth is known."""

    def positive_losses(self, outputs: Outputs, assigned: Tensor, targets: Targets, suffix: str) -> Losses:
        """Losses `loss_{class,bbox,giou}` of queries whose ground truth is known: no matching, no rank weights.

        Keys end in `suffix`, then in the suffix of the layer. Sums over queries are divided by the number of queries
        with a ground truth: its mean over the processes, at least 1.

        Args:
            outputs: `pred_logits` (B, Q, C), `pred_boxes` (B, Q, 4), `aux_outputs`.
            assigned: (B, Q) int64, see `PositiveQueries`.
        """
        ground_truth = GroundTruth.from_targets(targets)
        layers = {f"{suffix}{layer}": Layer(output) for layer, output in decoder_layers(outputs).items()}
        (stack,) = stack_layers(layers)
        stack.logits = stack.logits.masked_fill((assigned == IGNORED)[..., None], NEVER)
        image, query = (assigned >= 0).nonzero(as_tuple=True)
        number = len(image)
        sizes = assigned.new_tensor(ground_truth.sizes)
        index = (sizes.cumsum(0) - sizes)[image] + assigned[image, query]
        count = len(stack.logits)
        layer = assigned.new_tensor(range(count)).repeat_interleave(number)
        pairs = Pairs(layer, image.repeat(count), query.repeat(count), index.repeat(count))
        return self.stack_losses(stack, pairs, ground_truth, average_over_processes(number, assigned.device))


class CoDINOCriterion(PositiveLosses, AlignDINOCriterion):
    """`AlignDINOCriterion` with the losses of positive queries.

    Args:
        loss_class_type: "quality_focal_loss" as published, or another loss of `AlignDINOCriterion`.
        k: queries matched to each ground truth in the encoder's proposals and the intermediate layers. None: 2 with
            Align-DETR's two losses, so that one option makes Co-Align-DETR; else 1, as published.
        options: options of `AlignDINOCriterion`.
    """

    def __init__(self, loss_class_type: str = "quality_focal_loss", k: int | None = None, **options):
        super().__init__(loss_class_type=loss_class_type, k=match_number(loss_class_type, k), **options)


class CoDeformableCriterion(PositiveLosses, AlignHDETRCriterion):
    """`AlignHDETRCriterion` with the losses of positive queries.

    Args:
        loss_class_type: "focal_loss" as published, or another loss of `AlignHDETRCriterion`.
        k: see `CoDINOCriterion`.
        options: options of `AlignHDETRCriterion`.
    """

    def __init__(self, loss_class_type: str = "focal_loss", k: int | None = None, **options):
        super().__init__(loss_class_type=loss_class_type, k=match_number(loss_class_type, k), **options)
