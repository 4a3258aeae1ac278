import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detrex.modeling import HungarianMatcher
from projects.h_deformable_detr.modeling import (
    DeformableCriterion,
    HDeformableDETR,
    HDeformableDetrTransformer,
    HDeformableDetrTransformerDecoder,
    HDeformableDetrTransformerEncoder,
)

from detrkit.config.load import get_config

CONFIGS = "baselines"
MODEL_OPTIONS = (
    "num_queries_one2one",
    "num_queries_one2many",
    "with_box_refine",
    "as_two_stage",
    "mixed_selection",
    "k_one2many",
    "lambda_one2many",
    "select_box_nums_for_evaluation",
)


@pytest.fixture
def build(small):
    """Build an HDeformableDETR from the configuration of a recorded model, with changes."""

    def build(config, **options):
        config = {**config, **options}
        torch.manual_seed(0)
        return HDeformableDETR(
            **small.parts(config),
            transformer=HDeformableDetrTransformer(
                HDeformableDetrTransformerEncoder(**small.transformer_config(config, "encoder")),
                HDeformableDetrTransformerDecoder(**small.transformer_config(config, "decoder")),
                num_feature_levels=4,
                as_two_stage=config["as_two_stage"],
                two_stage_num_proposals=config["num_queries_one2one"] + config["num_queries_one2many"],
                mixed_selection=config["mixed_selection"],
            ),
            criterion=DeformableCriterion(
                config["num_classes"], HungarianMatcher(**config["matcher"]), dict(config["weight_dict"])
            ),
            pixel_mean=[123.675, 116.28, 103.53],
            pixel_std=[58.395, 57.12, 57.375],
            device="cpu",
            **{key: config[key] for key in MODEL_OPTIONS},
        )

    return build


@pytest.fixture
def config(golden):
    """An H-DETR of 64 channels; the recorded one has 256."""
    return {**golden("model_h_deformable_detr").config, "embed_dim": 64}


def test_recorded_model(golden, build, check):
    """Outputs, losses, gradients and detections of the published implementation."""
    case = golden("model_h_deformable_detr")
    check.recording(build(case.config), case)


def test_recorded_criterion(golden):
    """Every loss of the published criterion; proposals are class-agnostic."""
    case = golden("deformable_criterion")
    outputs = case.input["outputs"]
    layers = {(): outputs, ("enc_outputs",): outputs["enc_outputs"]}
    layers |= {("aux_outputs", i): layer for i, layer in enumerate(outputs["aux_outputs"])}
    for layer in layers.values():
        for name in ("pred_logits", "pred_boxes"):
            layer[name].requires_grad_()
    criterion = DeformableCriterion(case.config["num_classes"], HungarianMatcher(**case.config["matcher"]), {})
    losses = criterion(outputs, case.input["targets"])
    assert losses.keys() == case.output["losses"].keys()
    for name, expected in case.output["losses"].items():
        torch.testing.assert_close(losses[name].reshape(()), expected.reshape(()), rtol=5e-4, atol=1e-6)
    sum(losses.values()).sum().backward()
    for path, layer in layers.items():
        expected = case.output["grads"]
        for key in path:
            expected = expected[key]
        for name in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(layer[name].grad, expected[name], rtol=5e-4, atol=1e-6)


def test_state_dict_is_the_published_one(check):
    """Checkpoints move both ways: key by key, shape by shape, in the same order."""
    cfg = get_config("baselines/h_deformable_detr_r50_two_stage_12ep.py")
    check.contract(instantiate(cfg.model), "align_h_deformable_detr_r50_two_stage")


@pytest.mark.slow
def test_full_size_model(check):
    """The published config trains a step and detects on the CPU."""
    check.full_size(f"{CONFIGS}/h_deformable_detr_r50_two_stage_12ep.py", (320, 288), (288, 320))


def test_tiny_config_trains_a_step(check, small):
    """The config for the CPU builds; losses and gradients are finite and complete."""
    cfg = LazyConfig.apply_overrides(
        get_config("baselines/h_deformable_detr_tiny.py"), ["model.transformer.decoder.num_layers=1"]
    )
    losses = check.gradients(instantiate(cfg.model), small.images((96, 128), num_classes=3))
    assert "loss_bbox_one2many" in losses and "loss_bbox_0" not in losses


def test_published_schedule():
    """12 epochs of 16 images; backbone, sampling offsets and reference points learn at a tenth of the rate."""
    cfg = get_config("baselines/h_deformable_detr_r50_two_stage_12ep.py")
    factor = instantiate(cfg.optimizer.params.lr_factor_func)
    slow = ("backbone.stem", "transformer.encoder.layers.0.attentions.0.sampling_offsets", "reference_points")
    assert [factor(name) for name in (*slow, "neck")] == [0.1, 0.1, 0.1, 1.0]
    assert (cfg.train.max_iter, cfg.model.k_one2many, cfg.model.num_queries_one2many) == (90000, 6, 1500)


@pytest.mark.parametrize("objects", [3, 0])
@pytest.mark.parametrize("options", [{}, {"k_one2many": 0}, {"mixed_selection": False}])
def test_every_parameter_has_a_gradient(config, build, check, small, objects, options):
    """Each parameter gets a gradient, also without objects and without the hybrid branch, else DDP hangs."""
    check.gradients(build(config, **options), small.images((64, 96), (96, 72), objects=objects))


@pytest.mark.parametrize("mixed_selection", [True, False])
def test_batched_inference_is_inference_one_by_one(config, build, check, small, mixed_selection):
    """Detections of an image do not depend on the other images of its batch."""
    model = build(config, mixed_selection=mixed_selection)
    for parameter in model.parameters():  # the heads start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    check.batched_inference(model, small.images((65, 91), (80, 64), (59, 120)))


def test_the_two_sets_of_queries_do_not_see_each_other(config, build, small):
    """The second set does not change the predictions of the one-to-one queries."""
    batch, seen = small.images((64, 96), (96, 72)), []
    for k_one2many in (0, 4):
        model = build(config, k_one2many=k_one2many).train()
        model.criterion.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(batch)
    torch.testing.assert_close(seen[0]["pred_boxes"], seen[1]["pred_boxes"])
    torch.testing.assert_close(seen[0]["pred_logits"], seen[1]["pred_logits"])


def test_the_second_set_is_weighted_like_the_first(config, build, small):
    """`weight_dict` has no `_one2many` keys; lambda scales that branch additionally."""
    batch, losses = small.images((64, 96)), {}
    for factor in (1.0, 0.5):
        losses[factor] = build(config, lambda_one2many=factor).train()(batch)
    for name, loss in losses[1.0].items():
        scale = 0.5 if name.endswith("_one2many") else 1.0
        torch.testing.assert_close(losses[0.5][name], loss * scale)
    unweighted = build(config, weight_dict={}).train()(batch)
    for name, loss in losses[1.0].items():
        weight = config["weight_dict"][name.removesuffix("_one2many")]
        torch.testing.assert_close(loss, unweighted[name] * weight)


def test_bfloat16_autocast_is_finite(config, build, check, small):
    """Mixed precision training."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check.gradients(build(config), small.images((64, 96), (96, 72)))


@pytest.mark.parametrize("option", ["with_box_refine", "as_two_stage"])
def test_variants_that_do_not_exist_are_refused(config, build, option):
    """A config of plain Deformable DETR fails with a message that names the option."""
    with pytest.raises(ValueError, match=f"needs .*{option}=True"):
        build(config, **{option: False})
