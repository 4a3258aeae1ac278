"""Co-Deformable-DETR: Deformable DETR at inference, heads and positive queries in training."""

import copy

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detrex.layers import get_sine_pos_embed
from projects.h_deformable_detr.modeling import DeformableCriterion, HDeformableDETR

from align_detr.modeling.losses import CLASSIFICATION_LOSSES, iou_and_giou
from co_detr.heads import PaddedGroundTruth, Pyramid
from co_detr.modeling.queries import draw_queries
from co_detr.ops import BACKGROUND, IGNORED
from detrkit.config.exported import input_size
from detrkit.datasets.classes import Classes
from detrkit.inference.agreement import compare
from detrkit.inference.graph import Shape, metadata_of, write_onnx
from detrkit.inference.pytorch import PyTorchNetwork
from detrkit.inference.runtimes import OnnxNetwork
from detrkit.training.training_parts import drop_training_parts, without_training_parts

from .test_co_dino import CONFIGS, QUERY_LOSSES, images, load, losses_of


def tiny(*overrides):
    """Smaller still, on the CPU, with heads that do not start at zero."""
    cfg = load("co_deformable_detr_tiny", *overrides)
    torch.manual_seed(0)
    cfg.model.device = "cpu"
    cfg.model.transformer.decoder.num_layers = 2
    for part in ("encoder", "decoder"):
        cfg.model.transformer[part].feedforward_dim = 32
    cfg.model.num_queries_one2one = cfg.model.select_box_nums_for_evaluation = 20
    if cfg.model.get("collaboration") is not None:
        cfg.model.collaboration.heads.faster_rcnn.hidden_dim = 16
    model = instantiate(cfg.model)
    for head in model.bbox_embed:
        torch.nn.init.normal_(head.layers[-1].weight, std=0.1)
    return model


def test_at_inference_it_is_deformable_detr():
    """The same weights detect the same with and without the training parts."""
    model = tiny()
    plain = tiny("model.collaboration=null")
    weights = without_training_parts(model.state_dict())
    assert list(weights) == list(plain.state_dict()) and len(weights) < len(model.state_dict())
    plain.load_state_dict(weights)
    assert isinstance(model, HDeformableDETR)
    with torch.no_grad():
        expected = plain.eval()(images((48, 64)))[0]["instances"]
        for ours in (model.eval(), drop_training_parts(copy.deepcopy(model))):
            detections = ours(images((48, 64)))[0]["instances"]
            assert torch.equal(detections.scores, expected.scores)
            assert torch.equal(detections.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_losses_of_the_detector_are_deformable_detrs():
    """The criterion's losses of the matching queries equal those of Deformable DETR's own criterion."""
    model = tiny()
    plain = tiny("model.collaboration=null")
    plain.load_state_dict(without_training_parts(model.state_dict()))
    weights = dict(model.criterion.weight_dict)
    plain.criterion = DeformableCriterion(3, model.criterion.matcher, weights)
    losses, expected = losses_of(model), losses_of(plain)
    assert expected.keys() < losses.keys() and "loss_class_enc" in expected
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objects", [0, 3, 40])
def test_everything_learns(objects):
    """Each parameter gets a gradient: with objects, without, and with more objects than queries."""
    model = tiny()
    losses = losses_of(model, images(objects=objects))
    for suffix in ("atss", "atss_0", "faster_rcnn", "faster_rcnn_0"):
        assert {f"{name}_{suffix}" for name in QUERY_LOSSES} <= losses.keys()
    assert {"loss_atss_giou", "loss_faster_rcnn_rpn_class"} <= losses.keys()
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_positive_losses_are_the_loops():
    """Focal loss (alpha 0.25, gamma 2), L1 and GIoU of queries with known objects, divided by the positives."""
    criterion = tiny().criterion
    assert criterion.k == 1 and criterion.classification_loss is CLASSIFICATION_LOSSES["focal_loss"]
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 4, 3), torch.rand(2, 4, 4) * 0.3 + 0.3
    targets = [
        {"labels": torch.tensor([2, 0]), "boxes": torch.rand(2, 4) * 0.3 + 0.3},
        {"labels": torch.tensor([1]), "boxes": torch.rand(1, 4) * 0.3 + 0.3},
    ]
    assigned = torch.tensor([[1, 1, 0, BACKGROUND], [0, BACKGROUND, IGNORED, IGNORED]])
    aux = {"pred_logits": logits.flip(1), "pred_boxes": boxes}
    outputs = {"pred_logits": logits, "pred_boxes": boxes, "aux_outputs": [aux]}
    losses = criterion.positive_losses(outputs, assigned, targets, "_x")

    scores, expected = logits.sigmoid(), dict.fromkeys(QUERY_LOSSES, 0.0)
    for i in range(2):
        for q in range(4):
            index = int(assigned[i, q])
            if index == IGNORED:
                continue
            for c in range(3):
                s = scores[i, q, c]
                if index >= 0 and c == targets[i]["labels"][index]:
                    _, giou = iou_and_giou(boxes[i, q], targets[i]["boxes"][index])
                    expected["loss_class"] -= 0.25 * (1 - s) ** 2 * s.log()
                    expected["loss_bbox"] += (boxes[i, q] - targets[i]["boxes"][index]).abs().sum()
                    expected["loss_giou"] += 1 - giou
                else:
                    expected["loss_class"] -= 0.75 * s**2 * (1 - s).log()
    for name, value in expected.items():
        torch.testing.assert_close(losses[f"{name}_x"], value / 4, rtol=5e-4, atol=1e-6)


def test_queries_are_made_of_boxes_and_features():
    """Content and position of each positive query, computed one by one."""
    parts = tiny().collaboration
    torch.manual_seed(0)
    dim = parts.embed_dim
    maps = [torch.randn(2, dim, size, size) for size in (8, 4, 2, 1)]
    pyramid = Pyramid(maps, parts.strides, torch.tensor([[64.0, 64.0], [64.0, 64.0]]))
    targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.4, 0.4, 0.5]])}] * 2
    objects = PaddedGroundTruth.from_targets(targets, pyramid.extent)
    cells = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
    for name, head in parts.heads.items():
        _, candidates = head(pyramid, objects)
        queries = draw_queries(candidates, pyramid.extent, 300, 9)
        embed = parts.contents[name]
        embed.position_shift.data.fill_(0.5)
        content, position = embed(queries, candidates)
        for i in range(2):
            for q in range(queries.boxes.shape[1]):
                halves = embed.box(get_sine_pos_embed(queries.boxes[i, q][None, None], dim // 2, exchange_xy=False))
                torch.testing.assert_close(position[i, q], halves[0, 0, :dim] + 0.5)
                feature = candidates.features(queries.sampled)[i, q]
                torch.testing.assert_close(content[i, q], halves[0, 0, dim:] + embed.feature(feature))
                if name == "atss":
                    assert torch.equal(feature, cells[i, queries.sampled[i, q]])


def test_features_of_proposals_are_means_of_their_bins():
    """On a constant map every proposal inside has the map's value as its feature."""
    parts = tiny().collaboration
    value = torch.arange(parts.embed_dim).float()
    maps = [value[None, :, None, None].expand(1, -1, size, size).contiguous() for size in (16, 8, 4, 2)]
    pyramid = Pyramid(maps, parts.strides, torch.tensor([[128.0, 128.0]]))
    targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.3]])}]
    _, candidates = parts.heads["faster_rcnn"](pyramid, PaddedGroundTruth.from_targets(targets, pyramid.extent))
    first = (candidates.assigned[0] >= 0).nonzero()[:1].T
    torch.testing.assert_close(candidates.features(first)[0, 0], value, rtol=1e-4, atol=1e-3)


def test_positions_reach_the_decoder():
    """Another position embedding changes the losses of positive queries, and no other."""
    model = tiny()
    losses = losses_of(model)
    for embed in model.collaboration.contents.values():
        embed.position_shift.data.fill_(2.0)
    changed = losses_of(model)
    suffixes = [f"{head}{layer}" for head in ("atss", "faster_rcnn") for layer in ("", "_0")]
    of_queries = {f"{name}_{suffix}" for name in QUERY_LOSSES for suffix in suffixes}
    for name, value in losses.items():
        assert torch.equal(changed[name], value) == (name not in of_queries), name


@pytest.mark.engine("reads attributes that detrex's H-DETR keeps under no name")
def test_published_settings():
    """The config has the settings of the published model; the rows on Swin differ in their own."""
    cfg = load("co_deformable_detr_r50_12ep")
    with torch.device("meta"):
        cfg.model.device = "meta"
        model = instantiate(cfg.model)
    assert (model.num_queries_one2one, model.num_queries_one2many, model.k_one2many) == (300, 0, 0)
    assert model.transformer.decoder.look_forward_twice and model.transformer.mixed_selection
    assert cfg.model.position_embedding.offset == -0.5 and cfg.model.position_embedding.temperature == 10000
    assert model.select_box_nums_for_evaluation == 100 and model.transformer.num_feature_levels == 4
    assert [model.criterion.weight_dict[name] for name in QUERY_LOSSES] == [2, 5, 2]
    parts = model.collaboration
    assert parts.strides == [8, 16, 32, 64, 128] and (parts.head_weight, parts.query_weight) == (12, 1)
    assert parts.heads["faster_rcnn"].finest * 8 == 112
    assert (cfg.train.max_iter, cfg.optimizer.lr, cfg.optimizer.weight_decay) == (90000, 2e-4, 1e-4)


@pytest.mark.parametrize(
    "size, short, long",
    [("tiny", 0.2, 0.3), ("small", 0.2, 0.4), ("base", 0.2, 0.4), ("large", 0.3, 0.6)],
)
def test_rows_on_swin(size, short, long):
    """Stochastic depth, weight decay, schedule and queries of the published rows; their models build."""
    for epochs, drop in ((12, short), (36, long)):
        cfg = load(f"co_deformable_detr_swin_{size}_{epochs}ep")
        assert cfg.model.backbone.drop_path_rate == drop and cfg.optimizer.weight_decay == 0.05
        assert cfg.train.max_iter == 7500 * epochs
        queries = 900 if (size, epochs) == ("large", 36) else 300
        assert cfg.model.num_queries_one2one == queries
        with torch.device("meta"):
            cfg.model.device = "meta"
            model = instantiate(cfg.model)
        assert len(model.query_embedding.weight) == queries


def test_a_second_set_of_queries_is_refused():
    """Hybrid matching has another training; the error names the options."""
    with pytest.raises(ValueError, match="k_one2many=4: Co-Deformable-DETR has one set of queries"):
        tiny("model.k_one2many=4", "model.num_queries_one2many=80")


@pytest.mark.slow
def test_the_command_line_trains_evaluates_and_exports(run_tool, run_python, tmp_path):
    """A run trains, resumes and evaluates; the exported ONNX file detects as the model does."""
    from .test_command_line import SMALL, precisions

    config, folder = ["--config-file", CONFIGS / "co_deformable_detr_tiny.py"], tmp_path / "out"
    run_tool("train_net.py", *config, f"train.output_dir={folder}", *SMALL, "train.max_iter=2")
    trained = run_tool("train_net.py", *config, "--resume", f"train.output_dir={folder}", *SMALL)
    checkpoint, weights = folder / "model_final.pth", tmp_path / "weights.safetensors"
    run_tool("export-weights", "--checkpoint", checkpoint, "--output", weights, *config)
    options = [f"train.output_dir={tmp_path / 'eval'}", *SMALL, f"train.init_checkpoint={weights}"]
    evaluated = run_tool("train_net.py", *config, "--eval-only", *options)
    assert precisions(trained) and precisions(trained) == precisions(evaluated)
    pytest.importorskip("onnxruntime")
    model = tmp_path / "model.onnx"
    pictures = tmp_path / "data" / "val2017"
    options = ["--checkpoint", checkpoint, "--output", model, "--check", pictures]
    # The engine exports what either platform trained.
    exported = run_python("-m", "align_detr", "export", *config, *options, ALIGN_DETR_PLATFORM="embedded")
    assert model.exists() and "ONNX Runtime" in exported.stdout, exported.stderr


@pytest.mark.engine("detrex's own modules keep numbers of one image's size: the engine's are exported")
def test_onnx_agrees(tmp_path):
    """ONNX Runtime finds what PyTorch finds, on images of any size; the training parts are not in the file."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = tiny()
    with torch.no_grad():
        for classifier in model.class_embed:
            torch.nn.init.normal_(classifier.weight, std=0.2)
            classifier.bias.fill_(-2.0)
    cfg = load("co_deformable_detr_tiny")
    cfg.train.device = "cpu"
    cfg.model.transformer.decoder.num_layers = 2
    for part in ("encoder", "decoder"):
        cfg.model.transformer[part].feedforward_dim = 32
    cfg.model.num_queries_one2one = cfg.model.select_box_nums_for_evaluation = 20
    cfg.model.collaboration.heads.faster_rcnn.hidden_dim = 16
    cfg.dataloader.test.mapper.augmentation[0].short_edge_length = 64
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    names = Classes(("red", "green", "blue"), (1, 2, 3))
    network = PyTorchNetwork(cfg, str(tmp_path / "model.pth"), names, "cpu", "float32")
    shape = Shape(None, None)
    write_onnx(network.model, tmp_path / "m.onnx", metadata_of(names, input_size(cfg), shape, "RGB"), shape, (64, 96))
    random = np.random.default_rng(0)
    pixels = [(str(n), random.integers(0, 256, (70, 90 - 20 * n, 3), np.uint8)) for n in range(2)]
    results = compare(network, OnnxNetwork(tmp_path / "m.onnx", "cpu"), pixels)
    assert all(result.agrees for result in results) and sum(result.counts[0] for result in results) > 10
