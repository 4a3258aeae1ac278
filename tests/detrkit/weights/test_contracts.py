"""The published full-size models convert without a missing or left-over tensor, or one of another shape."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detrex.layers import ShapeSpec

from align_detr._platform import is_upstream
from detrkit.config.load import get_config
from detrkit.weights import WeightsFile, all_formats, apply_settings, recognise, zoo
from detrkit.weights.settings import check_detector

ROOT = Path(__file__).resolve().parents[3]
CONTRACT = ROOT / "tests" / "contract"
FILES = sorted(CONTRACT.glob("state_dict_foreign_*.json"))
NAMES = [path.stem.removeprefix("state_dict_foreign_") for path in FILES]

REFUSED = {"hf_deformable_detr_r50"}  # one stage


def shapes_of(name):
    return json.loads((CONTRACT / f"state_dict_foreign_{name}.json").read_text(encoding="utf-8"))


def meta_file(name):
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes_of(name).items()}
    return WeightsFile(Path(name), state, {})


def five_levels(cfg):
    """Strides 4 to 64."""
    names = ["res2", "res3", "res4", "res5"]
    cfg.model.backbone.out_features = names
    cfg.model.neck.in_features = names
    cfg.model.neck.input_shapes.res2 = L(ShapeSpec)(channels=256)
    cfg.model.transformer.num_feature_levels = 5
    return cfg


def config_of(name, detector):
    backbone = "swin_large" if name.endswith("swin_l") else "r50"
    if name.endswith("vit_l"):
        return LazyConfig.load(str(ROOT / "projects/co_detr/configs/co_dino_vit_large_5scale_12ep.py"))
    if "co_dino" in name:
        return LazyConfig.load(str(ROOT / f"projects/co_detr/configs/co_dino_{backbone}_5scale_12ep.py"))
    if "co_deformable" in name:
        return LazyConfig.load(str(ROOT / "projects/co_detr/configs/co_deformable_detr_r50_12ep.py"))
    if backbone == "swin_large":
        return get_config("baselines/dino_swin_large_384_5scale_12ep.py")
    paths = {
        "DINO": "baselines/dino_r50_4scale_12ep.py",
        "HDeformableDETR": "baselines/h_deformable_detr_r50_two_stage_12ep.py",
        "DABDETR": "baselines/dab_detr_r50_50ep.py",
        "ConditionalDETR": "baselines/conditional_detr_r50_50ep.py",
    }
    cfg = get_config(paths[detector])
    return five_levels(cfg) if "5scale" in name else cfg


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_a_published_model_converts_whole(name):
    """Every tensor of the file has its place in the model, and every tensor of the model its value; Co-DINO's training
    heads too, so that its training can go on."""
    file = meta_file(name)
    known = recognise(file.state)
    cfg = config_of(name, known.detector)
    cfg.train.device = cfg.model.device = "meta"
    requirements = known.requirements(file)
    if is_upstream():
        cfg.train.ignore_checkpoint_settings = [key for key in requirements.settings if key.endswith("_eps")]
    apply_settings(cfg, requirements.settings, name, must_be=requirements.must_be)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    state, trace = known.to_ours(file.state)
    ours = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    theirs = {key: list(tensor.shape) for key, tensor in state.items()}
    assert not trace.unknown
    assert theirs.keys() - ours.keys() == set()
    assert ours.keys() - theirs.keys() == set()
    assert theirs == ours


@pytest.mark.parametrize("name", NAMES)
def test_one_format_and_no_other_recognises_a_published_model(name):
    """A file recognised as two formats could be converted by the wrong table."""
    names = shapes_of(name).keys()
    assert len([known for known in all_formats().values() if known.recognises(set(names))]) == 1


@pytest.mark.parametrize("path", sorted(CONTRACT.glob("state_dict_*.json")), ids=lambda path: path.stem)
def test_files_of_detrex_are_left_alone(path):
    """Released Align-DETR files have detrex's names already, and are no other format's."""
    if "foreign" in path.stem:
        return
    assert recognise(json.loads(path.read_text(encoding="utf-8"))["keys"]) is None


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_a_published_model_comes_back_with_its_names(name):
    """What export writes has the names and shapes that the other code base has; a Swin backbone too."""
    shapes = shapes_of(name)
    known = recognise(shapes)
    # One number for all values of a tensor: no memory is needed.
    state = {key: torch.ones(1).expand(shape) if shape else torch.ones(()) for key, shape in shapes.items()}
    ours, _ = known.to_ours(state)
    back = {key: list(tensor.shape) for key, tensor in known.to_theirs(ours).items()}
    assert back == shapes


@pytest.mark.parametrize(
    "config, wanted",
    [
        ("baselines/dab_detr_r50_dc5_50ep.py", "detrex_dab_detr"),
        ("baselines/conditional_detr_r101_dc5_50ep.py", "detrex_conditional_detr"),
    ],
)
def test_rows_of_detrex_on_torchvisions_resnet_convert_whole(config, wanted):
    """Its DC5 files have the backbone under `backbone.body` and torchvision's names; all else is detrex's."""
    cfg = get_config(config)
    cfg.train.device = cfg.model.device = "meta"
    with torch.device("meta"):
        ours = instantiate(cfg.model).state_dict()
    theirs = all_formats()[wanted].to_theirs(ours)
    assert "backbone.body.layer4.0.downsample.1.running_var" in theirs and recognise(theirs).name == wanted
    back, trace = recognise(theirs).to_ours(theirs)
    assert not trace.unknown and back.keys() == ours.keys()
    settings = recognise(theirs).settings(WeightsFile(Path("x"), theirs, {}))
    apply_settings(cfg, settings, "x.pth")
    assert (cfg.model.num_queries, cfg.model.transformer.encoder.num_layers) == (300, 6)


PUBLISHED = {
    "foreign_hf_conditional_detr_r50": ["conditional_detr_r50_50ep_hf"],
    "foreign_hf_dab_detr_r50": ["dab_detr_r50_50ep_hf"],
    "foreign_hf_deformable_detr_r50_two_stage": ["deformable_detr_r50_two_stage_50ep_hf"],
    "foreign_mmdet_align_detr_4scale_r50": ["align_detr_r50_4scale_12ep", "align_detr_r50_4scale_24ep"],
    "foreign_mmdet_co_dino_5scale_r50": ["co_dino_r50_5scale_12ep", "co_dino_r50_5scale_36ep_lsj"],
    "foreign_mmdet_dino_4scale_r50": ["dino_r50_4scale_12ep_mmdet"],
    "foreign_original_dino_4scale_r50": ["dino_r50_4scale_12ep_original", "dino_r50_4scale_36ep_original"],
    "foreign_original_dino_5scale_r50": ["dino_r50_5scale_12ep_original", "dino_r50_5scale_24ep_original"],
    "foreign_sensex_co_deformable_detr_r50": ["co_deformable_detr_r50_12ep_sensex"],
    "foreign_sensex_co_dino_5scale_vit_l": ["co_dino_vit_large_5scale_sensex"],
    "foreign_sensex_co_dino_5scale_r50": ["co_dino_r50_5scale_12ep_sensex", "co_dino_r50_5scale_36ep_lsj_sensex"],
    "align_detr_r50_4scale": ["align_detr_r50_4scale_12ep_align_loss_released", "dino_r50_4scale_12ep_300dn"],
    "align_detr_r101_4scale": ["dino_r101_4scale_12ep"],
    "align_dab_detr_r50": ["dab_detr_r50_50ep"],
    "align_dab_detr_r101": ["dab_detr_r101_50ep"],
    "align_h_deformable_detr_r50_two_stage": ["h_deformable_detr_r50_two_stage_36ep"],
    "conditional_detr_r50": ["conditional_detr_r50_50ep"],
}
"""Entries of the zoo by the contract that has the names and shapes in their files."""


@pytest.mark.parametrize("contract, name", [(key, name) for key, names in PUBLISHED.items() for name in names])
def test_an_entry_of_the_zoo_has_the_model_of_its_file(contract, name):
    """Its config and overrides, with the settings of the file, make exactly the model that the file is of."""
    shapes = json.loads((CONTRACT / f"state_dict_{contract}.json").read_text(encoding="utf-8"))
    file = WeightsFile(
        Path(name), {k: torch.empty(v, device="meta") for k, v in shapes.get("keys", shapes).items()}, {}
    )
    cfg = zoo.config_of(name)
    cfg.train.device = cfg.model.device = "meta"
    known, state = recognise(file.state), file.state
    if known is not None:
        requirements = known.requirements(file)
        if is_upstream():
            cfg.train.ignore_checkpoint_settings = [key for key in requirements.settings if key.endswith("_eps")]
        check_detector(cfg, known, name)
        apply_settings(cfg, requirements.settings, name, must_be=requirements.must_be)
        state, _ = known.to_ours(file.state)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == {k: t.shape for k, t in state.items()}
