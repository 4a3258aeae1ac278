"""A two-stage detector with collaborative hybrid assignments: what Co-DINO and Co-Deformable-DETR share."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import ImageList, Instances
from detrex.utils import inverse_sigmoid
from torch import Tensor, nn

from .collaboration import Collaboration


class CollaborativeDetector:
    """Mixin before a two-stage detector: encoder and decoder also learn from auxiliary heads in training.

    Inference is the detector's. All additional parameters are in the module `collaboration`.

    Args:
        collaboration: None, or a module without heads: the detector alone, with this criterion.
        canvas_size: side in pixels of a square that images are pasted into, in the top left corner, before they are
            normalised; the rest counts as image. Sense-X's models with large-scale jitter are trained so. 0: no square.
        canvas_value: value of the pixels around the image.
        size_divisibility: pad images at the right and bottom to a multiple of this number of pixels; 0: do not.
        options: options of the detector; the criterion has `positive_losses`, see `PositiveLosses`.
    """

    def __init__(
        self,
        collaboration: Collaboration | None,
        size_divisibility: int = 0,
        canvas_size: int = 0,
        canvas_value: float = 114.0,
        **options,
    ):
        super().__init__(**options)
        self.size_divisibility = size_divisibility
        self.canvas_size, self.canvas_value = canvas_size, canvas_value
        if collaboration is not None and not hasattr(self.criterion, "positive_losses"):
            raise ValueError(
                f"criterion: {type(self).__name__} needs a criterion of co_detr.modeling, "
                f"not {type(self.criterion).__name__}"
            )
        # Without a head the other parameters get no gradient, and distributed training would wait for them.
        self.collaboration = collaboration if collaboration is not None and len(collaboration.heads) else None

    def preprocess_image(self, batched_inputs: Sequence[Mapping]) -> ImageList:
        """Normalise and pad the images."""
        images = super().preprocess_image(batched_inputs)
        if not self.size_divisibility:
            return images
        return ImageList.from_tensors(list(images), self.size_divisibility)

    def forward(self, batched_inputs: Sequence[Mapping]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Run the detector; in training, add the weighted losses of the heads and of the positive queries.

        Raises:
            ValueError: an image is larger than the canvas; or there is a canvas and the inputs are a traced tensor.
        """
        if not self.canvas_size:
            return self.forward_images(batched_inputs)
        if isinstance(batched_inputs, Tensor):
            raise ValueError(f"model.canvas_size={self.canvas_size}: a graph has no canvas; set it to 0 to export")
        sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
        outputs = self.forward_images([self.on_canvas(x) for x in batched_inputs])
        if self.training:
            return outputs
        return [
            {"instances": from_canvas(output["instances"], size, (x.get("height", size[0]), x.get("width", size[1])))}
            for output, size, x in zip(outputs, sizes, batched_inputs, strict=True)
        ]

    def on_canvas(self, inputs: Mapping) -> dict:
        """Paste the image of a dataset dict into a square; its ground truth then is in the square."""
        side, image = self.canvas_size, inputs["image"]
        height, width = image.shape[-2:]
        if max(height, width) > side:
            raise ValueError(
                f"an image of {height} x {width} pixels is larger than model.canvas_size={side}: "
                "set max_size of the mapper's ResizeShortestEdge to that"
            )
        square = image.new_full((image.shape[0], side, side), self.canvas_value)
        square[:, :height, :width] = image
        result = {**inputs, "image": square, "height": side, "width": side}
        if "instances" in inputs:
            result["instances"] = Instances((side, side), **inputs["instances"].get_fields())
        return result

    def forward_images(self, batched_inputs: Sequence[Mapping]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Run `forward` on images that are on their canvas already."""
        is_batch = not isinstance(batched_inputs, Tensor) and len(batched_inputs) > 1
        if not self.training and self.size_divisibility and is_batch:
            # Detections must not depend on the other images, and each image has padding of its own.
            return [super(CollaborativeDetector, self).forward([image])[0] for image in batched_inputs]
        if self.collaboration is None or not self.training:
            return super().forward(batched_inputs)
        with capture_forward(self) as captured:
            losses = super().forward(batched_inputs)
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        return losses | self.collaborate(instances, **captured)

    def collaborate(
        self, instances: Sequence[Instances], sizes: list[tuple[int, int]], memory: Tensor, decoder: dict
    ) -> dict[str, Tensor]:
        """Auxiliary losses from the activations that `capture_forward` recorded in the forward pass."""
        targets = self.prepare_targets(instances)
        extent = torch.tensor([x.image_size[::-1] for x in instances], dtype=torch.float32)
        extent = extent.to(memory.device, non_blocking=True)
        pyramid = self.collaboration.pyramid(memory, sizes, decoder["key_padding_mask"], extent)

        def decode(content: Tensor, position: Tensor | None, boxes: Tensor, mask: Tensor | None) -> dict:
            arguments = {"query": content, "reference_points": boxes, "attn_masks": [mask, None]}
            if position is not None:
                arguments["query_pos"] = position
            decoded = self.transformer.decoder(**{**decoder, **arguments})
            states, starts = decoded[0], starting_boxes(decoded, boxes)
            eps = getattr(self, "inverse_sigmoid_eps", 1e-3)  # detrex's detectors always use 1e-3
            return predictions(states, starts, self.class_embed, self.bbox_embed, eps)

        def losses_of(outputs: dict, assigned: Tensor, suffix: str) -> dict[str, Tensor]:
            losses = self.criterion.positive_losses(outputs, assigned, targets, suffix)
            weights = self.criterion.weight_dict
            return {key: loss * weights.get(key.replace(suffix, "", 1), 1.0) for key, loss in losses.items()}

        return self.collaboration(pyramid, targets, decode, losses_of)


def from_canvas(detections: Instances, size: tuple[int, int], output: tuple[int, int]) -> Instances:
    """Detections in pixels of a canvas, to those of the original image.

    Args:
        size: height and width of the image in the canvas.
        output: height and width of the original image.
    """
    return detector_postprocess(Instances(size, **detections.get_fields()), *output)


def starting_boxes(decoded: tuple, first: Tensor) -> Sequence[Tensor]:
    """Return for each decoder layer the boxes (B, Q, 4) that its box head refines.

    The embedded decoder returns them. detrex's decoder returns the refined boxes of each layer: each is the input of
    the next layer, and the last one is not used.
    """
    if hasattr(decoded, "starts"):
        return decoded.starts
    return [first, *decoded[1][:-1]]


def predictions(
    states: Sequence[Tensor],
    starts: Sequence[Tensor],
    class_embed: nn.ModuleList,
    bbox_embed: nn.ModuleList,
    eps: float = 1e-3,
) -> dict:
    """Predict `pred_logits` (B, Q, C) and `pred_boxes` (B, Q, 4); the earlier layers are in `aux_outputs`.

    Args:
        states: the layers' outputs, (B, Q, D) each.
        starts: the boxes (B, Q, 4), cxcywh in [0, 1], that each layer's box head refines.
        eps: clamping value of the inverse sigmoid.
    """
    layers = [
        {"pred_logits": classify(state), "pred_boxes": (regress(state) + inverse_sigmoid(start, eps)).sigmoid()}
        for state, start, classify, regress in zip(states, starts, class_embed, bbox_embed, strict=False)
    ]
    return {**layers[-1], "aux_outputs": layers[:-1]}


@contextmanager
def capture_forward(model: nn.Module) -> Iterator[dict]:
    """Record, inside the block, the activations of a two-stage detector's forward pass.

    The yielded dict gets these keys: `sizes`, (rows, columns) of each feature level; `memory`, the encoder's tokens
    (B, S, D); `decoder`, the keyword arguments of the decoder's call.
    """
    captured: dict = {}

    def on_neck(module: nn.Module, args: tuple, maps: Sequence[Tensor]) -> None:
        captured["sizes"] = [tuple(level.shape[-2:]) for level in maps]

    def on_encoder(module: nn.Module, args: tuple, memory: Tensor) -> None:
        captured["memory"] = memory

    def on_decoder(module: nn.Module, args: tuple, kwargs: dict) -> None:
        captured["decoder"] = kwargs

    handles = (
        model.neck.register_forward_hook(on_neck),
        model.transformer.encoder.register_forward_hook(on_encoder),
        model.transformer.decoder.register_forward_pre_hook(on_decoder, with_kwargs=True),
    )
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
