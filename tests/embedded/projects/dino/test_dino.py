import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.events import EventStorage
from detrex.modeling import HungarianMatcher
from projects.dino.modeling import (
    DINO,
    DINOCriterion,
    DINOTransformer,
    DINOTransformerDecoder,
    DINOTransformerEncoder,
)

from align_detr.modeling import AlignDINOCriterion, MixedMatcher
from detrkit.config.load import get_config

CONFIGS = "baselines"


@pytest.fixture
def build(small):
    """Build a DINO from the configuration of a recorded model, with changes."""

    def build(config, criterion=None, learnt_init_query=True, use_checkpoint=False, dn_number=0, **options):
        config = {**config, **options}
        if criterion is None:
            matcher = HungarianMatcher(**config["matcher"])
            criterion = DINOCriterion(config["num_classes"], matcher, dict(config["weight_dict"]))
        torch.manual_seed(0)
        transformer = DINOTransformer(
            DINOTransformerEncoder(**small.transformer_config(config, "encoder"), use_checkpoint=use_checkpoint),
            DINOTransformerDecoder(**small.transformer_config(config, "decoder"), use_checkpoint=use_checkpoint),
            num_feature_levels=4,
            two_stage_num_proposals=config["num_queries"],
            learnt_init_query=learnt_init_query,
        )
        return DINO(
            **small.parts(config),
            transformer=transformer,
            num_queries=config["num_queries"],
            criterion=criterion,
            select_box_nums_for_evaluation=config["select_box_nums_for_evaluation"],
            device="cpu",
            dn_number=dn_number,
            vis_period=config.get("vis_period", 0),
        )

    return build


@pytest.fixture
def config(golden):
    """A DINO of 64 channels; the recorded ones have 256."""
    return {**golden("model_dino").config, "embed_dim": 64}


def test_recorded_model(golden, build, check):
    """Outputs, losses, gradients and detections of the published implementation."""
    case = golden("model_dino")
    check.recording(build(case.config), case)


def test_recorded_model_under_align_detr(golden, build, check):
    """The same model with Align-DETR's criterion."""
    case = golden("model_align_dino")
    options = {key: case.config[key] for key in ("num_classes", "weight_dict", "alpha", "gamma", "tau", "k")}
    criterion = AlignDINOCriterion(matcher=MixedMatcher(**case.config["matcher"]), **options)
    check.recording(build(case.config, criterion), case)


def test_recorded_criterion(golden):
    """Every loss of the published criterion, and its gradient by every input."""
    case = golden("dino_criterion")
    outputs, dn_metas = case.input["outputs"], case.input["dn_metas"]

    def predictions(node, path=()):
        if isinstance(node, torch.Tensor):
            return {path: node} if str(path[-1]).startswith("pred_") else {}
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return {k: v for key, child in items for k, v in predictions(child, (*path, key)).items()}

    inputs = predictions({**outputs, "dn_metas": dn_metas})
    for tensor in inputs.values():
        tensor.requires_grad_()
    matcher = HungarianMatcher(**case.config["matcher"])
    criterion = DINOCriterion(case.config["num_classes"], matcher, {}, alpha=0.25, gamma=2.0)
    losses = criterion(outputs, case.input["targets"], dn_metas)
    assert losses.keys() == case.output["losses"].keys()
    for name, expected in case.output["losses"].items():
        torch.testing.assert_close(losses[name].reshape(()), expected.reshape(()), rtol=5e-4, atol=1e-6)
    sum(losses.values()).sum().backward()
    for path, expected in predictions(case.output["grads"]).items():
        torch.testing.assert_close(inputs[path].grad, expected, rtol=5e-4, atol=1e-6)


@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=pytest.mark.slow)])
def test_state_dict_is_the_published_one(check, depth):
    """Checkpoints move both ways: key by key, shape by shape, in the same order."""
    cfg = get_config("baselines/dino_r50_4scale_12ep.py")
    cfg = LazyConfig.apply_overrides(cfg, [f"model.backbone.stages.depth={depth}"])
    check.contract(instantiate(cfg.model), f"align_detr_r{depth}_4scale")


@pytest.mark.slow
def test_full_size_model(check):
    """The published config trains a step and detects on the CPU."""
    check.full_size(f"{CONFIGS}/dino_r50_4scale_12ep.py", (256, 224), (224, 256))


def test_overrides_carry_through_the_config():
    """Fewer layers, other weights, more classes and another width are one override each."""
    cfg = get_config("baselines/dino_tiny.py")
    cfg = LazyConfig.apply_overrides(
        cfg,
        [
            "model.transformer.decoder.num_layers=1",
            "model.criterion.weight_dict.loss_class=1",
            "model.criterion.weight_dict.loss_bbox=3",
            "model.num_classes=7",
            "model.num_queries=11",
            "model.embed_dim=64",
            "model.position_embedding.num_pos_feats=32",
        ],
    )
    model = instantiate(cfg.model)
    assert model.criterion.weight_dict == {
        f"loss_{name}{suffix}": weight
        for name, weight in (("class", 1), ("bbox", 3), ("giou", 2))
        for suffix in ("", "_enc", "_dn")
    }
    assert model.criterion.num_classes == model.class_embed[0].out_features == 7
    assert model.transformer.tgt_embed.weight.shape == (11, 64)


def test_published_schedule():
    """The published recipe: 12 epochs, 16 images per batch, a tenth of the rate for the backbone, clipping at 0.1."""
    cfg = get_config("baselines/dino_r50_4scale_12ep.py")
    factor = instantiate(cfg.optimizer.params.lr_factor_func)
    assert (cfg.optimizer.lr * factor("backbone.res3"), cfg.optimizer.lr * factor("neck")) == (1e-5, 1e-4)
    assert (cfg.train.max_iter, cfg.dataloader.train.total_batch_size) == (90000, 16)
    assert cfg.train.clip_grad.enabled and cfg.train.clip_grad.params.max_norm == 0.1
    assert get_config("baselines/dino_r50_4scale_24ep.py").train.max_iter == 180000


@pytest.mark.parametrize("learnt_init_query", [True, False])
@pytest.mark.parametrize("objects, dn_number", [(3, 6), (3, 0), (0, 6)])
def test_every_parameter_has_a_gradient(config, build, check, small, objects, dn_number, learnt_init_query):
    """Gradients and loss keys are the same with and without objects and denoising, else DDP hangs."""
    model = build(config, dn_number=dn_number, learnt_init_query=learnt_init_query)
    losses = check.gradients(model, small.images((64, 96), (96, 72), objects=objects))
    assert losses.keys() == {key for key in config["weight_dict"] if not key.endswith("_dn_enc")}


def test_losses_are_weighted_once(config, build, small):
    """The detector applies `weight_dict`; a loss without an entry is unchanged."""
    model, batch = build(config).train(), small.images((64, 96))
    plain = dict.fromkeys(model.criterion.weight_dict, 1.0)
    weights, model.criterion.weight_dict = model.criterion.weight_dict, plain
    unweighted = model(batch)
    model.criterion.weight_dict = {k: v for k, v in weights.items() if k != "loss_giou"}
    for name, loss in model(batch).items():
        factor = 1.0 if name == "loss_giou" else weights[name]
        torch.testing.assert_close(loss, unweighted[name] * factor)


@pytest.mark.engine("detrex attends to the padding of batched images at inference")
def test_batched_inference_is_inference_one_by_one(golden, build, check, small):
    """Detections of an image do not depend on the other images of its batch."""
    case = golden("model_dino")
    model = build(case.config)
    model.load_state_dict(case.state)
    check.batched_inference(model, small.images((65, 91), (80, 64), (59, 120)))


def test_denoising_does_not_reach_the_matching_queries(config, build, small):
    """Denoising queries do not change the predictions of the matching queries."""
    batch, seen = small.images((64, 96), (96, 72)), []
    for dn_number in (0, 6):
        model = build(config, dn_number=dn_number).train()
        model.criterion.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(batch)
    torch.testing.assert_close(seen[0]["pred_boxes"], seen[1]["pred_boxes"])
    torch.testing.assert_close(seen[0]["pred_logits"], seen[1]["pred_logits"])


def test_bfloat16_autocast_is_finite(config, build, check, small):
    """Mixed precision training."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = check.gradients(build(config, dn_number=6), small.images((64, 96), (96, 72)))
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_checkpointing_changes_memory_not_gradients(config, build, check, small):
    """`use_checkpoint` of encoder and decoder."""
    batch, gradients = small.images((64, 96)), []
    for use_checkpoint in (False, True):
        model = build(config, use_checkpoint=use_checkpoint)
        check.gradients(model, batch)
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_training_pictures(config, build, small):
    """`vis_period` draws ground truth and predictions side by side for the event storage."""
    model = build(config, vis_period=2).train()
    with EventStorage(start_iter=2) as storage:
        model(small.images((64, 96)))
        (drawing,) = storage._vis_data
    assert drawing[1].shape == (3, 64, 2 * 96)


def test_a_query_number_that_disagrees_is_explained(small, config, build):
    """Detector and transformer both have the number of queries; a difference is reported at once."""
    model = build(config)
    with pytest.raises(ValueError, match="num_queries=9 .*two_stage_num_proposals=20"):
        DINO(**small.parts(config), transformer=model.transformer, num_queries=9, criterion=model.criterion)
