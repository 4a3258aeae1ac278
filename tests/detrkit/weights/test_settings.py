"""Settings go with the weights: they are set before the model is built, or the weights are refused."""

import argparse
import logging

import pytest
import torch
from small_models import LACKING, random_state

from detrkit.config.load import get_config
from detrkit.weights import all_formats, apply_settings, look_at, prepare_config
from detrkit.weights.files import WeightsFile

SHAPES = {  # the least that a file needs to be recognised, and asked for its settings
    "mmdet_dino": {
        "memory_trans_fc.weight": (8, 8),
        "query_embedding.weight": (30, 8),
        "level_embed": (3, 8),
        "bbox_head.cls_branches.0.weight": (3, 8),
        "neck.convs.0.conv.weight": (8, 4, 1, 1),
        "encoder.layers.0.ffn.layers.0.0.weight": (256, 8),
        "decoder.layers.0.ffn.layers.0.0.weight": (256, 8),
        "decoder.layers.1.ffn.layers.0.0.weight": (256, 8),
        "decoder.layers.2.ffn.layers.0.0.weight": (256, 8),
    },
    "original_dab_detr": {
        "refpoint_embed.weight": (100, 4),
        "class_embed.weight": (3, 8),
        "transformer.decoder.layers.0.sa_qcontent_proj.weight": (8, 8),
        "transformer.encoder.layers.0.linear1.weight": (256, 8),
        "transformer.encoder.layers.1.linear1.weight": (256, 8),
        "transformer.decoder.layers.0.linear1.weight": (256, 8),
        "transformer.decoder.layers.1.linear1.weight": (256, 8),
    },
    "h_detr": {
        "transformer.pos_trans.weight": (16, 16),
        "transformer.level_embed": (3, 8),
        "query_embed.weight": (1800, 8),
        "class_embed.0.weight": (91, 8),
        "transformer.encoder.layers.0.linear1.weight": (256, 8),
        "transformer.decoder.layers.0.linear1.weight": (256, 8),
    },
}


def write(path, name, drop=(), add=None, **extra):
    shapes = {key: shape for key, shape in {**SHAPES[name], **(add or {})}.items() if key not in drop}
    torch.save({"model": random_state(shapes), **extra}, path)
    return path


def dino():
    cfg = get_config("baselines/dino_tiny.py")
    cfg.train.ignore_checkpoint_settings = list(LACKING)
    return cfg


def test_settings_are_set_and_said_once(tmp_path, caplog):
    """The change, with the value before, is one line of the log; a second time there is nothing to change."""
    path = write(tmp_path / "x.pth", "mmdet_dino")
    cfg = dino()
    with caplog.at_level(logging.INFO, "detrkit"):
        prepare_config(cfg, path).log()
    assert cfg.model.position_embedding.temperature == 20 and cfg.model.position_embedding.offset == 0.0
    (line,) = [record.getMessage() for record in caplog.records if "Set for" in record.getMessage()]
    assert "model.position_embedding.offset -0.5 -> 0.0" in line and "x.pth (mmdetection" in line
    assert prepare_config(cfg, path).changes == []


def test_the_neck_tells_align_detr_from_dino(tmp_path):
    """mmdetection's two have the same names; Align-DETR has biases in its neck, and detrex's positions."""
    path = write(tmp_path / "x.pth", "mmdet_dino", add={"neck.convs.0.conv.bias": (8,)})
    settings = look_at(path).settings
    assert settings["model.position_embedding.temperature"] == 10000
    assert settings["model.position_embedding.offset"] == -0.5


def test_the_config_in_a_file_counts_more_than_a_rule(tmp_path):
    """mmdetection writes the text of its config into a file; a neck with biases does not make an Align-DETR."""
    text = "model = dict(positional_encoding=dict(num_feats=128, normalize=True, offset=-0.25, temperature=30), x=1)"
    meta = {"cfg": text}
    path = write(tmp_path / "x.pth", "mmdet_dino", add={"neck.convs.0.conv.bias": (8,)}, meta=meta)
    settings = look_at(path).settings
    assert settings["model.position_embedding.temperature"] == 30
    assert settings["model.position_embedding.offset"] == -0.25


def test_the_options_in_a_file_count(tmp_path):
    """The DC5 model of DAB-DETR has the tensors of the other; only its options tell."""
    options = argparse.Namespace(dilation=True, pe_temperatureH=10, pe_temperatureW=10)
    settings = look_at(write(tmp_path / "x.pth", "original_dab_detr", args=options)).settings
    assert settings["model.position_embedding.temperature"] == 10
    assert settings["model.backbone.stages.res5_dilation"] == 2
    with pytest.raises(ValueError, match="for rows than for columns"):
        options = argparse.Namespace(pe_temperatureH=10, pe_temperatureW=20)
        look_at(write(tmp_path / "y.pth", "original_dab_detr", args=options))


def test_dilation_that_a_config_cannot_have_is_refused(tmp_path):
    """The tiny backbone is a list of stages, which has no such option."""
    path = write(tmp_path / "x.pth", "original_dab_detr", args=argparse.Namespace(dilation=True))
    with pytest.raises(ValueError, match="res5_dilation=2, which the config has no option for"):
        prepare_config(get_config("baselines/dab_detr_tiny.py"), path)
    cfg = get_config("baselines/dab_detr_r50_50ep.py")
    prepare_config(cfg, path)
    assert cfg.model.backbone.stages.res5_dilation == 2


@pytest.mark.parametrize("options, queries", [(None, (300, 1500)), ({"num_queries_one2one": 900}, (300, 1500))])
def test_the_queries_of_h_detr_are_split(tmp_path, options, queries):
    """The embeddings tell the sum alone; the published models have 1500 in the second set."""
    extra = {} if options is None else {"args": argparse.Namespace(**options)}
    settings = look_at(write(tmp_path / "x.pth", "h_detr", **extra)).settings
    assert (settings["model.num_queries_one2one"], settings["model.num_queries_one2many"]) == queries
    both = argparse.Namespace(num_queries_one2one=800, num_queries_one2many=1000)
    settings = look_at(write(tmp_path / "y.pth", "h_detr", args=both)).settings
    assert (settings["model.num_queries_one2one"], settings["model.num_queries_one2many"]) == (800, 1000)


def test_another_number_of_levels_is_refused(tmp_path):
    """Backbone, neck and transformer would have to change together: that is another config."""
    path = write(tmp_path / "x.pth", "mmdet_dino", add={"level_embed": (5, 8)})
    with pytest.raises(ValueError, match="model.transformer.num_feature_levels is 5 there, 3 here"):
        prepare_config(dino(), path)


def test_an_override_is_never_replaced(tmp_path):
    """Whoever writes offset=-0.5 means it, or does not know better: an error, not a silent change of either."""
    path = write(tmp_path / "x.pth", "mmdet_dino")
    cfg = dino()
    cfg.model.position_embedding.offset = -0.25
    with pytest.raises(ValueError, match="offset=-0.25 contradicts x.pth"):
        prepare_config(cfg, path, overrides=["model.position_embedding.offset=-0.25"])
    cfg.train.ignore_checkpoint_settings = ["model.position_embedding.offset", *LACKING]
    prepare_config(cfg, path, overrides=["model.position_embedding.offset=-0.25"])
    assert cfg.model.position_embedding.offset == -0.25 and cfg.model.position_embedding.temperature == 20
    agreeing = dino()
    agreeing.model.position_embedding.offset = 0.0
    prepare_config(agreeing, path, overrides=["model.position_embedding.offset=0.0"])


def test_a_training_keeps_its_number_of_classes(tmp_path):
    """Rows are picked by name instead; in evaluation the model has the classes of its weights."""
    path = write(tmp_path / "x.pth", "mmdet_dino", add={"bbox_head.cls_branches.0.weight": (80, 8)})
    training, evaluation = dino(), dino()
    prepare_config(training, path, for_training=True)
    prepare_config(evaluation, path)
    assert training.model.num_classes == 3 and evaluation.model.num_classes == 80


def test_what_a_detector_has_no_option_for_is_refused():
    """As detrex's own detectors, whose code has an eps of 1e-3: the same value is no setting, another is refused."""

    class Detector:
        def __init__(self, num_classes):
            self.num_classes = num_classes

    from detectron2.config import LazyCall as L
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"train": {}}, flags={"allow_objects": True})
    cfg.model = L(Detector)(num_classes=3)
    apply_settings(cfg, {"model.inverse_sigmoid_eps": 1e-3}, "x.pth")
    with pytest.raises(ValueError, match="inverse_sigmoid_eps=1e-05, which Detector here has no option"):
        apply_settings(cfg, {"model.inverse_sigmoid_eps": 1e-5}, "x.pth")
    cfg.train.ignore_checkpoint_settings = ["model.inverse_sigmoid_eps"]
    assert apply_settings(cfg, {"model.inverse_sigmoid_eps": 1e-5}, "x.pth") == []


@pytest.mark.engine("detrex has no such option")
def test_the_eps_of_the_inverse_sigmoid_counts_near_the_border(golden):
    """It is the last setting to be noticed: boxes that fill the image are held off its border by 1e-3 or by 1e-5."""
    from test_recordings import converted_model, detect, inputs_of

    case = golden("foreign_mmdet_align_detr")
    model, _ = converted_model(case)
    with torch.no_grad():  # proposals as large as the image
        model.bbox_embed[-1].layers[-1].bias[2:] = 12
    example = inputs_of(case)[0]
    exact = detect(model, example)[1]
    assert model.inverse_sigmoid_eps == 1e-5 and model.transformer.decoder.inverse_sigmoid_eps == 1e-3
    model.inverse_sigmoid_eps = model.transformer.decoder.inverse_sigmoid_eps = 1e-5
    apart = detect(model, example)[1]
    assert (exact - apart).abs().max() > 1e-5


def test_every_format_says_what_it_needs():
    """Positions, eps and classes are in no state dict that would complain."""
    for known in all_formats().values():
        if known.refusal:
            continue
        assert known.title and known.family and bool(known.detector) != bool(known.backbone)
    file = WeightsFile("x", random_state(SHAPES["mmdet_dino"]), {})
    assert {"model.position_embedding.temperature", "model.position_embedding.offset", "model.num_classes"} <= set(
        all_formats()["mmdet_dino"].settings(file)
    )
