"""The federated loss: gradients only in the classes of the sample, which is weighted by the classes' frequency."""

import pytest
import torch
from detectron2.data import MetadataCatalog

from align_detr.modeling import (
    AlignDINOCriterion,
    AlignHDETRCriterion,
    AlignSetCriterion,
    FederatedClasses,
    MixedMatcher,
)

CLASSES = 12


def outputs_of(with_encoder, classes=CLASSES):
    def layer():
        logits = torch.randn(2, 6, classes, requires_grad=True)
        return {"pred_logits": logits, "pred_boxes": torch.rand(2, 6, 4) * 0.3 + 0.3}

    outputs = {**layer(), "aux_outputs": [layer()]}
    return outputs | ({"enc_outputs": layer()} if with_encoder else {})


TARGETS = [
    {"labels": torch.tensor([4, 1]), "boxes": torch.rand(2, 4) * 0.3 + 0.3},
    {"labels": torch.tensor([4]), "boxes": torch.rand(1, 4) * 0.3 + 0.3},
]


@pytest.mark.parametrize("kind", [AlignSetCriterion, AlignDINOCriterion, AlignHDETRCriterion])
@pytest.mark.parametrize("loss", ["ia_bce_loss", "focal_loss", "quality_focal_loss"])
def test_gradients_are_zero_outside_of_the_sample(kind, loss):
    """Every layer: the batch's classes and sampled ones have gradients, the others none; the matched losses stay."""
    torch.manual_seed(0)
    criterion = kind(
        num_classes=CLASSES,
        matcher=MixedMatcher(cost_class_type="focal_loss_cost"),
        weight_dict={},
        loss_class_type=loss,
        federated=FederatedClasses(number=5),
    )
    outputs = outputs_of(kind is not AlignSetCriterion)
    losses = criterion(outputs, TARGETS)
    sum(value for name, value in losses.items() if name.startswith("loss_class")).backward()
    for layer in (outputs, *outputs["aux_outputs"]):
        moved = layer["pred_logits"].grad.abs().amax((0, 1)) > 0
        assert moved[[1, 4]].all() and moved.sum() == 5
    if kind is AlignHDETRCriterion:  # class-agnostic: the column of class 0 is "object"
        assert outputs["enc_outputs"]["pred_logits"].grad.abs().amax((0, 1)).gt(0).all()


def test_the_loss_is_that_of_the_sampled_columns():
    """The classification loss of a sample equals the plain loss of these columns alone."""
    torch.manual_seed(0)
    outputs = outputs_of(False)
    options = {"matcher": MixedMatcher(cost_class_type="focal_loss_cost"), "weight_dict": {}, "k": 1}
    federated = FederatedClasses(number=5)
    criterion = AlignSetCriterion(num_classes=CLASSES, federated=federated, loss_class_type="focal_loss", **options)
    torch.manual_seed(7)
    found = criterion(outputs, TARGETS)
    torch.manual_seed(7)
    columns = (~federated.left_out(torch.tensor([4, 1, 4]), CLASSES)).nonzero().squeeze(1)
    small = {
        **outputs,
        "pred_logits": outputs["pred_logits"][..., columns],
        "aux_outputs": [{**x, "pred_logits": x["pred_logits"][..., columns]} for x in outputs["aux_outputs"]],
    }
    targets = [{**t, "labels": torch.searchsorted(columns, t["labels"])} for t in TARGETS]
    plain = AlignSetCriterion(num_classes=5, loss_class_type="focal_loss", **options)
    for name, value in plain(small, targets).items():
        torch.testing.assert_close(found[name], value)


def test_classes_are_sampled_by_their_frequency():
    """Draws are proportional to sqrt(n); a class of the batch is always in; few classes: nothing is left out."""
    torch.manual_seed(0)
    federated = FederatedClasses(number=2, counts=[100, 1, 4, 9, 25])
    chosen = torch.zeros(5)
    for _ in range(4000):
        left_out = federated.left_out(torch.tensor([0]), 5)
        assert not left_out[0] and left_out.sum() == 3
        chosen += ~left_out
    expected = torch.tensor([1.0, 2, 3, 5]) / 11
    torch.testing.assert_close(chosen[1:] / 4000, expected, atol=0.03, rtol=0)
    assert not FederatedClasses(number=9).left_out(torch.tensor([], dtype=torch.int64), 5).any()
    assert FederatedClasses(number=2).left_out(torch.arange(4), 5).tolist() == [False] * 4 + [True]


def test_counts_of_a_dataset():
    """From the metadata, which the dataset has once it is loaded; else an error with the next step."""
    name = "federated_counts_test"
    counts = [{"id": 7, "image_count": 1}, {"id": 2, "image_count": 100}]
    with pytest.raises(ValueError, match="have no class_image_count; give counts"):
        FederatedClasses(number=1, dataset=name).left_out(torch.tensor([0]), 2)
    MetadataCatalog.get(name).class_image_count = counts
    federated = FederatedClasses(number=1, dataset=name)
    federated.left_out(torch.tensor([0]), 2)
    assert federated.counts.tolist() == [100, 1]
    with pytest.raises(ValueError, match="counts of 2 classes, but 3 logits"):
        federated.left_out(torch.tensor([0]), 3)
    with pytest.raises(ValueError, match="federated.number=0"):
        FederatedClasses(number=0)
