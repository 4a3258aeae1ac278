"""A two-stage detector with collaborative hybrid assignments: what Co-DINO and Co-Deformable-DETR share."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from detectron2.structures import ImageList, Instances
from detrex.utils import inverse_sigmoid
from torch import Tensor, nn

from .collaboration import Collaboration


class CollaborativeDetector:
    """Mixin before a two-stage detector: encoder and decoder also learn from auxiliary heads in training.

    Inference is the detector's. All additional parameters are in the module `collaboration`.

    Args:
        collaboration: None, or a module without heads: the detector alone, with this criterion.
        size_divisibility: pad images at the right and bottom to a multiple of this number of pixels; 0: do not.
        options: options of the detector; the criterion has `positive_losses`, see `PositiveLosses`.
    """

    def __init__(self, collaboration: Collaboration | None, size_divisibility: int = 0, **options):
        super().__init__(**options)
        self.size_divisibility = size_divisibility
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
        """Run the detector; in training, add the weighted losses of the heads and of the positive queries."""
        if not self.training and self.size_divisibility and len(batched_inputs) > 1:
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
