"""Predictions of every decoder layer of a DETR detector at inference."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances
from detrex.layers import box_cxcywh_to_xyxy
from torch import Tensor, nn

# Switches off the parts that only training has: denoising, the hybrid branch, images for TensorBoard, auxiliary heads.
# Auxiliary outputs stay on.
RECORDED_WITH = {"dn_number": 0, "k_one2many": 0, "vis_period": 0, "aux_loss": True, "collaboration": None}
WAITING_BATCHES = 16


class LayerPredictions(NamedTuple):
    """Predictions of L decoder layers, in order, for B images, N queries and C classes."""

    logits: Tensor  # (L, B, N, C) float32
    boxes: Tensor  # (L, B, N, 4) float32, cxcywh in [0, 1]; of a model with a canvas they may lie outside the image


class _Recorder(nn.Module):
    """Replaces a criterion: keeps the outputs of its first call, and returns no losses."""

    def __init__(self):
        super().__init__()
        self.weight_dict: dict[str, float] = {}
        self.outputs: dict | None = None

    def forward(self, outputs: dict, *args, **kwargs) -> dict[str, Tensor]:
        if self.outputs is None:
            self.outputs = outputs
        return {}


@contextmanager
def _criterion_at_inference(model: nn.Module, criterion: nn.Module) -> Iterator[None]:
    """The model calls this criterion inside the block, with all else as at inference."""
    settings = {name: value for name, value in RECORDED_WITH.items() if hasattr(model, name)}
    before = {name: getattr(model, name) for name in ("criterion", *settings)}
    modes = [(module, module.training) for module in model.modules()]
    try:
        for name, value in (settings | {"criterion": criterion}).items():
            setattr(model, name, value)
        model.eval()
        model.training = True
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)
        for module, training in modes:
            module.training = training


@torch.no_grad()
def predict_layers(model: nn.Module, batched_inputs: Sequence[Mapping]) -> LayerPredictions:
    """Predictions of each decoder layer at inference.

    At inference the detectors return only the last layer's predictions; in training the criterion gets those of all
    layers. Therefore a recorder replaces the criterion, and `training` is set on the detector only, not on its parts:
    batch norm, dropout and query selection stay in evaluation mode. Hooks on the heads would not work, as detectors
    call them differently often, and compute boxes from their outputs later.

    Args:
        model: a DINO, H-Deformable-DETR, DAB-DETR, Conditional DETR or SD-DETR detector, embedded or detrex's, with
            Align-DETR's criterion or its own. It is restored.
        batched_inputs: dataset dicts with `image` (3, H, W), all of one size, as detectors treat padding in
            training differently. Ground truth is not used.

    Raises:
        ValueError: the model has no criterion that is called with `pred_logits` and `pred_boxes`, or the images
            differ in size.
    """
    sizes = {tuple(x["image"].shape[-2:]) for x in batched_inputs}
    if len(sizes) != 1:
        raise ValueError(f"a batch needs images of one size, not of {len(sizes)}: see batches_of_one_size")
    _check_criterion(model)
    nothing = Instances(sizes.pop(), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))
    recorder = _Recorder()
    with _criterion_at_inference(model, recorder):
        model([{**x, "instances": nothing} for x in batched_inputs])
    if not {"pred_logits", "pred_boxes"} <= (recorder.outputs or {}).keys():
        raise ValueError(f"{type(model).__name__} does not give pred_logits and pred_boxes to its criterion")
    layers = [*recorder.outputs.get("aux_outputs", []), recorder.outputs]
    logits, boxes = (torch.stack([layer[key] for layer in layers]).float() for key in ("pred_logits", "pred_boxes"))
    if canvas := getattr(model, "canvas_size", 0):  # boxes in the square that the images were pasted into
        height, width = batched_inputs[0]["image"].shape[-2:]
        boxes = boxes * boxes.new_tensor([canvas / width, canvas / height] * 2)
    return LayerPredictions(logits, boxes)


@torch.no_grad()
def criterion_loss(model: nn.Module, example: Mapping, target: Mapping[str, Tensor]) -> float:
    """Sum of the criterion's weighted losses of one image, all decoder layers and encoder proposals, without denoising.

    Batch norm, dropout and query selection are as at inference, so the loss is the same in each call. The criterion
    divides by the number of objects.

    Args:
        model: as in `predict_layers`.
        example: a dataset dict with `image` (3, H, W).
        target: `labels` (G,) and `boxes` (G, 4), cxcywh in [0, 1].

    Raises:
        ValueError: the model has no criterion.
    """
    _check_criterion(model)
    height, width = example["image"].shape[-2:]
    boxes = box_cxcywh_to_xyxy(target["boxes"]) * torch.tensor([width, height, width, height])
    instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=target["labels"])
    with _criterion_at_inference(model, model.criterion):
        losses = model([{**example, "instances": instances}])
    return float(sum(losses.values()))


def _check_criterion(model: nn.Module) -> None:
    if not isinstance(getattr(model, "criterion", None), nn.Module):
        raise ValueError(f"{type(model).__name__} has no criterion, so it is no DETR detector whose layers can be seen")


def detections(model: nn.Module, logits: Tensor, boxes: Tensor, batched_inputs: Sequence[Mapping]) -> list[Instances]:
    """Detections of one layer, chosen as the model chooses them at inference, in pixels of the original images.

    Args:
        logits: (B, N, C).
        boxes: (B, N, 4), cxcywh in [0, 1].
        batched_inputs: dicts of `image` (3, H, W) and the original `height` and `width`.
    """
    sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
    results = model.inference(logits, boxes, sizes)
    return [
        detector_postprocess(result, x["height"], x["width"]).to("cpu")
        for result, x in zip(results, batched_inputs, strict=True)
    ]


def batches_of_one_size(examples: Iterable[dict], batch_size: int) -> Iterator[list[dict]]:
    """Batches of up to `batch_size` examples whose `image` (3, H, W) has one size, so that there is no padding.

    The order changes. At most `WAITING_BATCHES` times `batch_size` examples wait for others of their size.
    """
    waiting: dict[tuple[int, ...], list[dict]] = {}
    for example in examples:
        size = tuple(example["image"].shape[-2:])
        waiting.setdefault(size, []).append(example)
        if len(waiting[size]) == batch_size:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) >= WAITING_BATCHES * batch_size:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()
