import importlib.util
from pathlib import Path

import pytest
import torch
from detrex.modeling import SetCriterion

from align_detr.modeling import AlignDINOCriterion, AlignHDETRCriterion, AlignSetCriterion, MixedMatcher
from align_detr.modeling.losses import CLASSIFICATION_LOSSES

_spec = importlib.util.spec_from_file_location(
    "reference_align_criterion", Path(__file__).parents[1] / "reference" / "align_criterion.py"
)
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

SETTINGS = ["a0.0_k2_t0.33", "a0.25_k1_t1.5", "a0.25_k2_t1.5", "a0.5_k3_t3.0"]


def leaves(node, path=""):
    """The prediction tensors of nested outputs, by path."""
    if isinstance(node, torch.Tensor):
        return {path: node} if "pred_" in path else {}
    if not isinstance(node, dict | list):
        return {}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return {k: v for key, value in items for k, v in leaves(value, f"{path}/{key}".lstrip("/")).items()}


def build(cls, config, **overrides):
    config = {**config, **overrides}
    return cls(matcher=MixedMatcher(**config.pop("matcher")), weight_dict={}, **config)


def random_batch(objects, layers=3, queries=20, classes=5, dn=None, seed=0, dtype=torch.float32):
    """DINO-like outputs with gradients, targets, and dn_metas where `dn` gives the groups."""
    g = torch.Generator().manual_seed(seed)

    def layer(n):
        return {
            "pred_logits": torch.randn(len(objects), n, classes, generator=g).to(dtype).requires_grad_(),
            "pred_boxes": (torch.rand(len(objects), n, 4, generator=g) * 0.4 + 0.2).to(dtype).requires_grad_(),
        }

    outputs = layer(queries) | {"aux_outputs": [layer(queries) for _ in range(layers - 1)]}
    outputs["enc_outputs"] = layer(queries)
    targets = [
        {"labels": torch.randint(classes, (n,), generator=g), "boxes": torch.rand(n, 4, generator=g) * 0.4 + 0.2}
        for n in objects
    ]
    metas = None
    if dn:
        padding = 2 * max(objects)
        known = layer(dn * padding) | {"aux_outputs": [layer(dn * padding) for _ in range(layers - 1)]}
        metas = {"output_known_lbs_bboxes": known, "dn_num": dn, "single_padding": padding}
    return outputs, targets, metas


def dino(**options):
    return AlignDINOCriterion(num_classes=5, matcher=MixedMatcher(2, 5, 2), weight_dict={}, **options)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("cls, prefix", [(AlignDINOCriterion, "align_dino"), (AlignSetCriterion, "align_set")])
def test_recorded_losses_and_gradients(golden, cls, prefix, setting):
    """Protects every loss and the gradient of their sum, as the released code gives them."""
    case = golden(f"{prefix}_criterion_{setting}")
    predictions = leaves({k: v for k, v in case.input.items() if k != "targets"})
    for tensor in predictions.values():
        tensor.requires_grad_()
    metas = {"dn_metas": case.input["dn_metas"]} if "dn_metas" in case.input else {}
    losses = build(cls, case.config)(case.input["outputs"], case.input["targets"], **metas)

    assert set(losses) == set(case.output["losses"])
    for name, expected in case.output["losses"].items():
        assert losses[name].item() == pytest.approx(expected.item(), rel=5e-4), name
    sum(losses.values()).backward()
    expected = leaves(case.output["grads"])
    for path, tensor in predictions.items():
        torch.testing.assert_close(tensor.grad, expected[path.removeprefix("outputs/")], rtol=5e-4, atol=1e-6)


@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES)
@pytest.mark.parametrize("objects", [[3, 5, 1], [0, 4], [15, 2], [25, 1]], ids=str)
def test_equals_the_formulation_layer_by_layer(kind, objects):
    """Protects the one-pass criterion, losses and gradients, in crowded, empty and unequal images."""
    outputs, targets, metas = random_batch(objects, dn=3)
    options = dict(alpha=0.3, gamma=1.5, tau=0.8, k=3)
    predictions = leaves(outputs) | leaves(metas)

    losses = dino(loss_class_type=kind, **options)(outputs, targets, metas)
    grads = torch.autograd.grad(sum(losses.values()), predictions.values())
    expected = reference.criterion(outputs, targets, metas, kind=kind, **options)
    expected_grads = torch.autograd.grad(sum(expected.values()), predictions.values())

    assert set(losses) == set(expected)
    for name in losses:
        assert losses[name].item() == pytest.approx(expected[name].item(), rel=1e-4, abs=1e-6), name
    for name, a, b in zip(predictions, grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES)
def test_hybrid_branch_and_proposals_by_hand(kind):
    """Protects H-DETR under every loss: proposals know one class, hybrid queries have k each and their factor."""
    outputs, targets, _ = random_batch([3, 2], layers=2)
    hybrid, _, _ = random_batch([3, 2], layers=2, queries=30, seed=1)
    criterion = AlignHDETRCriterion(num_classes=5, matcher=MixedMatcher(2, 5, 2), weight_dict={}, loss_class_type=kind)
    del hybrid["enc_outputs"]
    losses = criterion(outputs | {f"{name}_one2many": value for name, value in hybrid.items()}, targets, 3, 0.5)

    agnostic = [t | {"labels": torch.zeros_like(t["labels"])} for t in targets]
    expected = {"loss_class_enc": (outputs["enc_outputs"], agnostic, 2, 1), "loss_class": (outputs, targets, 1, 1)}
    expected["loss_class_0_one2many"] = (hybrid["aux_outputs"][0], targets, 3, 0.5)
    for name, (layer, objects, k, factor) in expected.items():
        logits, boxes = layer["pred_logits"], layer["pred_boxes"]
        pairs = reference.match(logits, boxes, objects, k, **reference.COSTS)
        loss, _, _ = reference.layer_losses(logits, boxes, objects, pairs, 0.25, 2.0, 1.5, kind)
        assert losses[name].item() == pytest.approx(factor * loss.item() / 5, rel=1e-4), name


def test_a_set_criterion_takes_proposals_of_all_classes():
    """Protects users' detectors with encoder proposals: the proposals get DINO's losses."""
    outputs, targets, _ = random_batch([3, 0, 8])
    options = dict(num_classes=5, matcher=MixedMatcher(2, 5, 2), weight_dict={})
    ours, dinos = (cls(**options)(outputs, targets) for cls in (AlignSetCriterion, AlignDINOCriterion))
    assert ours["loss_class_enc"] == dinos["loss_class_enc"] and ours["loss_giou_enc"] == dinos["loss_giou_enc"]


def test_plain_focal_loss_is_the_detectors_own():
    """Protects the baseline: focal loss with one query per object equals detrex's criterion."""
    outputs, targets, _ = random_batch([3, 0, 8])
    del outputs["enc_outputs"]
    options = dict(num_classes=5, matcher=MixedMatcher(2, 5, 2), weight_dict={})
    ours = AlignSetCriterion(**options, k=1, loss_class_type="focal_loss")(outputs, targets)
    theirs = SetCriterion(**options, alpha=0.25, gamma=2.0)(outputs, targets)
    for name, loss in ours.items():
        assert loss.item() == pytest.approx(theirs[name].item(), rel=1e-5), name


@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES)
@pytest.mark.parametrize("objects", [[0, 2], [0, 0]], ids=str)
def test_without_objects_every_prediction_still_gets_a_gradient(objects, kind):
    """Protects DDP from hanging: losses are finite and the graph reaches every output, objects or none."""
    outputs, targets, _ = random_batch(objects)
    losses = dino(loss_class_type=kind)(outputs, targets, None)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, tensor in leaves(outputs).items():
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all(), name
    assert losses["loss_class_dn"] == losses["loss_bbox_dn_0"] == 0
    if objects == [0, 0]:
        assert losses["loss_bbox"] == losses["loss_giou_enc"] == 0 and losses["loss_class"] > 0


@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_saturated_and_half_precision_outputs_stay_finite(kind, dtype):
    """Protects mixed precision: logits of +-80 and one-pixel objects give finite losses and gradients."""
    outputs, targets, metas = random_batch([3, 2], dn=2, dtype=dtype)
    with torch.no_grad():
        for i, tensor in enumerate(v for k, v in (leaves(outputs) | leaves(metas)).items() if "logits" in k):
            tensor.copy_(torch.where(tensor > 0, 80.0, -80.0) * (-1) ** i)
        targets[0]["boxes"][0, 2:] = 1 / 1333
    losses = dino(loss_class_type=kind)(outputs, targets, metas)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(t.grad).all() for t in (leaves(outputs) | leaves(metas)).values())


def test_losses_can_be_scaled_in_place():
    """Protects the detectors' `loss_dict[k] *= weight`: no loss shares memory with another."""
    outputs, targets, metas = random_batch([3, 2], dn=2)
    losses = dino()(outputs, targets, metas)
    before = {k: v.item() for k, v in losses.items()}
    for key in losses:
        losses[key] *= 2
    assert {k: v.item() for k, v in losses.items()} == pytest.approx({k: 2 * v for k, v in before.items()})
    sum(losses.values()).backward()


def test_match_number_overrides_every_layer():
    """Protects `match_number=[enc, dec_0, ..., dec_last]` and its error when the length is wrong."""
    outputs, targets, _ = random_batch([2, 1])
    assert dino(k=2)(outputs, targets) == dino(match_number=[2, 2, 2, 1])(outputs, targets)
    changed = dino(match_number=[1, 2, 3, 2])(outputs, targets)
    default = dino(k=2)(outputs, targets)
    assert [k for k in ("loss_bbox_enc", "loss_bbox_0", "loss_bbox_1", "loss_bbox") if changed[k] != default[k]] == [
        "loss_bbox_enc",
        "loss_bbox_1",
        "loss_bbox",
    ]
    with pytest.raises(ValueError, match=r"has 3 entries, but this model takes 4: \[encoder, dec_0"):
        dino(match_number=[2, 2, 1])(outputs, targets)


@pytest.mark.parametrize(
    "options", [dict(loss_class_type="focal"), dict(alpha=1.5), dict(tau=0.0), dict(k=0), dict(match_number=[2, 1.5])]
)
def test_options_out_of_range_are_refused(options):
    """Protects the user from a typo in an override that would train something else."""
    with pytest.raises(ValueError):
        dino(**options)
