"""Base class of the DETR detectors."""

from collections.abc import Mapping, Sequence

import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from .boxes import detections_from_predictions, targets_from_instances


class Detector(nn.Module):
    """Convert dataset dicts to tensors, and predictions to weighted losses or detections.

    Args:
        criterion: called with the predictions and the targets; its `weight_dict` scales the losses.
        pixel_mean, pixel_std: per channel, in the units of the input images.
        select_box_nums_for_evaluation: detections per image.
        device: unused, kept for configs. Inputs are moved to the device of the parameters.
    """

    def __init__(
        self,
        criterion: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        select_box_nums_for_evaluation: int,
        device: str = "auto",
    ):
        super().__init__()
        self.criterion = criterion
        self.select_box_nums_for_evaluation = select_box_nums_for_evaluation
        # Not in the state dict: checkpoints of the published detectors have no such keys.
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the model; inputs are moved to it."""
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: Sequence[Mapping]) -> ImageList:
        """Normalise the `image` (3, H, W) of each input, and pad with zeros at the right and bottom."""
        images = (x["image"].to(self.device, non_blocking=True) for x in batched_inputs)
        return ImageList.from_tensors([(image - self.pixel_mean) / self.pixel_std for image in images])

    def prepare_targets(self, targets: Sequence[Instances]) -> list[dict[str, Tensor]]:
        """Return `targets_from_instances` on the model's device."""
        return targets_from_instances([image.to(self.device) for image in targets])

    def inference(self, box_cls: Tensor, box_pred: Tensor, image_sizes: Sequence[tuple[int, int]]) -> list[Instances]:
        """Return `detections_from_predictions` with `select_box_nums_for_evaluation` detections."""
        return detections_from_predictions(box_cls, box_pred, image_sizes, self.select_box_nums_for_evaluation)

    def detect(
        self, outputs: Mapping[str, Tensor], images: ImageList, batched_inputs: Sequence[Mapping]
    ) -> list[dict[str, Instances]]:
        """Return detections in pixels of the original image: `height` and `width` of each input, else its own size."""
        results = self.inference(outputs["pred_logits"], outputs["pred_boxes"], images.image_sizes)
        return [
            {"instances": detector_postprocess(result, x.get("height", h), x.get("width", w))}
            for result, x, (h, w) in zip(results, batched_inputs, images.image_sizes, strict=True)
        ]

    def weigh(self, losses: dict[str, Tensor], weights: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """Multiply losses by their weights (default: the criterion's); a loss without a weight is unchanged."""
        weights = self.criterion.weight_dict if weights is None else weights
        return {name: loss * weights.get(name, 1.0) for name, loss in losses.items()}
