"""A small detector with random weights, and pictures to run it on."""

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from PIL import Image

from detrkit.config.load import get_config

KINDS = {
    "dino": "baselines/dino_tiny.py",
    "h_detr": "baselines/h_deformable_detr_tiny.py",
    "dab_detr": "baselines/dab_detr_tiny.py",
}
NEEDS_TIMM = {"dino_lite0": "baselines/dino_lite0_4scale.py"}


def small_config(kind="dino"):
    """One layer of everything that may have one, on images of 64 pixels."""
    cfg = get_config({**KINDS, **NEEDS_TIMM}[kind])
    cfg.train.device = "cpu"
    cfg.dataloader.test.mapper.augmentation[0].short_edge_length = 64
    cfg.model.select_box_nums_for_evaluation = 60
    if kind in ("dino", "dino_lite0"):
        cfg.model.num_queries = 20
    elif kind == "h_detr":
        cfg.model.num_queries_one2one = cfg.model.num_queries_one2many = 20
        cfg.model.transformer.two_stage_num_proposals = 40
    else:
        cfg.model.num_queries = 20
        cfg.model.transformer.encoder.num_layers = 1
    return cfg


def random_weights(cfg, seed=0):
    """Of a model whose boxes and scores differ from query to query: heads start at zero otherwise."""
    torch.manual_seed(seed)
    model = instantiate(cfg.model)
    heads = model.bbox_embed if isinstance(model.bbox_embed, torch.nn.ModuleList) else [model.bbox_embed]
    classifiers = model.class_embed if isinstance(model.class_embed, torch.nn.ModuleList) else [model.class_embed]
    with torch.no_grad():
        for head in heads:
            torch.nn.init.normal_(head.layers[-1].weight, std=0.1)
        for classifier in classifiers:
            torch.nn.init.normal_(classifier.weight, std=0.2)
            classifier.bias.fill_(-2.0)
    return model.state_dict()


def write_run(folder, kind="dino"):
    """A training's folder, but for its logs."""
    folder.mkdir(parents=True)
    cfg = small_config(kind)
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    torch.save({"model": random_weights(cfg), "iteration": 0}, folder / "model_final.pth")
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "dino_small")


@pytest.fixture(scope="session")
def pictures():
    """Arrays of two sizes in turn, RGB."""
    random = np.random.default_rng(0)
    return [
        np.asarray(
            Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize((96, 72) if n % 2 else (70, 90))
        )
        for n in range(7)
    ]
