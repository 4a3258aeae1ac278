"""Every published row at full size: one training step and one inference on two images."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances

CONFIGS = Path(__file__).resolve().parents[2] / "projects/align_detr/configs"
RESNETS = [path.stem for path in CONFIGS.glob("*ep.py") if "_r50_" in path.stem or "_r101_" in path.stem]
# Of the larger backbones one each: they differ in size alone, and their small versions are tested in test_backbones.py.
ROWS = sorted([*RESNETS, "align_detr_swin_tiny_224_4scale_12ep", "align_detr_vitdet_base_4scale_12ep"])


def two_images():
    g = torch.Generator().manual_seed(0)
    batch = []
    for height, width, objects in (320, 352, 3), (352, 288, 2):
        instances = Instances((height, width))
        corners = torch.rand(objects, 2, generator=g) * 150
        instances.gt_boxes = Boxes(torch.cat([corners, corners + 20 + 100 * torch.rand(objects, 2, generator=g)], 1))
        instances.gt_classes = torch.randint(80, (objects,), generator=g)
        image = torch.rand(3, height, width, generator=g) * 255
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_one_step_and_one_inference(name):
    """Protects the configs that nobody can train in a test: they build, step once and detect."""
    torch.manual_seed(0)
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(CONFIGS / f"{name}.py")), ["train.device=cpu"])
    model = instantiate(cfg.model).train()
    # Each block adds its variance to what came before: too much for 33 of them with frozen norms and random weights.
    for key, buffer in model.backbone.named_buffers():
        if key.endswith("conv3.norm.weight"):
            buffer.fill_(0.1)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)

    losses = model(two_images())
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    missing = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    torch.nn.utils.clip_grad_norm_(model.parameters(), **cfg.train.clip_grad.params)
    optimizer.step()

    with torch.no_grad():
        found = model.eval()(two_images())
    for x, detected in zip(two_images(), found, strict=True):
        instances = detected["instances"]
        assert instances.image_size == (x["height"], x["width"])
        assert len(instances) == cfg.model.select_box_nums_for_evaluation
        assert torch.isfinite(instances.scores).all() and torch.isfinite(instances.pred_boxes.tensor).all()
