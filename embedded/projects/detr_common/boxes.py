"""Convert ground truth to training targets, and predictions to detections."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from detrex.layers import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from torch import Tensor


def targets_from_instances(instances: Sequence[Instances]) -> list[dict[str, Tensor]]:
    """Return per image `labels` (G,) int64 and `boxes` (G, 4), cxcywh in [0, 1] of the image without padding."""
    targets = []
    for image in instances:
        height, width = image.image_size
        pixels = image.gt_boxes.tensor
        boxes = box_xyxy_to_cxcywh(pixels) / pixels.new_tensor([width, height, width, height])
        targets.append({"labels": image.gt_classes, "boxes": boxes})
    return targets


def detections_from_predictions(
    logits: Tensor, boxes: Tensor, image_sizes: Sequence[tuple[int, int]], limit: int
) -> list[Instances]:
    """Select the `limit` best (query, class) pairs of each image by sigmoid score, best first.

    Args:
        logits: (B, N, C). A query may give detections of several classes.
        boxes: (B, N, 4), cxcywh in [0, 1].
        image_sizes: (height, width) of each image in pixels.

    Returns:
        Per image `pred_boxes` (xyxy, pixels of `image_sizes`), `scores` and `pred_classes` (int64).

    Raises:
        ValueError: there are fewer than `limit` pairs.
    """
    num_queries, num_classes = logits.shape[1:]
    if limit > num_queries * num_classes:
        raise ValueError(
            f"select_box_nums_for_evaluation={limit}, but {num_queries} queries and {num_classes} classes give only "
            f"{num_queries * num_classes} scores: choose at most this number"
        )
    scores, flat = logits.float().sigmoid().flatten(1).topk(limit)
    queries, classes = flat.div(num_classes, rounding_mode="floor"), flat % num_classes
    sizes = torch.tensor([(w, h, w, h) for h, w in image_sizes], dtype=boxes.dtype, device=boxes.device)
    corners = box_cxcywh_to_xyxy(boxes.gather(1, queries[..., None].expand(-1, -1, 4))) * sizes[:, None]
    return [
        Instances(tuple(size), pred_boxes=Boxes(corners[i]), scores=scores[i], pred_classes=classes[i])
        for i, size in enumerate(image_sizes)
    ]
