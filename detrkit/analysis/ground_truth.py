"""Ground truth of dataset dicts as the criteria take it, and the matcher that models are measured with."""

import torch
from detectron2.structures import BoxMode
from omegaconf import DictConfig
from torch import Tensor

from align_detr.modeling import MixedMatcher


def target_of(image: dict) -> dict[str, Tensor]:
    """Ground truth of a dataset dict, as the criteria take it; crowds and boxes without area are left out."""
    objects = [a for a in image["annotations"] if not a.get("iscrowd", 0)]
    corners = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    left, top, right, bottom = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4).unbind(-1)
    width, height = image["width"], image["height"]
    boxes = torch.stack(
        [
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        ],
        dim=-1,
    )
    keep = (right > left) & (bottom > top)
    return {"labels": torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)[keep], "boxes": boxes[keep]}


def matcher_of(cfg: DictConfig) -> MixedMatcher:
    """The first config's matching cost, one-to-one, for all models, so that they are measured alike."""
    cost = cfg.model.get("criterion", {}).get("matcher")
    if cost is None:
        raise ValueError("the config has no model.criterion.matcher, so it is not the config of a DETR detector")
    return MixedMatcher(**{name: value for name, value in cost.items() if name != "_target_"})
