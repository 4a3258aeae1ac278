"""The H-Deformable-DETR detector."""

import copy
from collections.abc import Mapping, Sequence

import torch
from detectron2.structures import Instances
from projects.detr_common import (
    Detector,
    box_head,
    class_head,
    extract_features,
    predict_layers,
    prediction_dict,
)
from torch import Tensor, nn


class HDeformableDETR(Detector):
    """DETRs with Hybrid Matching (arXiv 2207.13080) on two-stage Deformable DETR with box refinement.

    Training uses a second set of queries: `k_one2many` of them match each ground truth. Both sets share all weights and
    do not attend to each other. Inference uses only the first set.

    Args:
        backbone: maps normalised images (B, 3, H, W) to a dict of feature maps.
        position_embedding: maps padding masks (B, H, W) to embeddings (B, embed_dim, H, W).
        neck: maps the backbone's dict to a list of maps of `embed_dim` channels, finest first.
        transformer: a `HDeformableDetrTransformer`.
        embed_dim: channels of queries and tokens.
        num_classes: number of object classes; there is no background class.
        num_queries_one2one, num_queries_one2many: sizes of the two sets of queries.
        criterion: called as `criterion(outputs, targets)` for each set; `criterion.weight_dict` scales its losses.
        pixel_mean, pixel_std: per channel, in the units of the input images.
        aux_loss: supervise the intermediate decoder layers too.
        with_box_refine, as_two_stage: must be true; the engine has no other variant.
        select_box_nums_for_evaluation: detections per image.
        device: see `Detector`.
        mixed_selection: the content of the queries is learned; equal to the transformer's option.
        k_one2many: queries of the second set per ground truth; 0 turns the second set off.
        lambda_one2many: factor of the second set's losses.
        inverse_sigmoid_eps: see `DeformableDecoder`.

    Raises:
        ValueError: `with_box_refine` or `as_two_stage` is false; `mixed_selection` differs from the transformer's; or
            the transformer's `two_stage_num_proposals` differs from the total number of queries.
    """

    def __init__(
        self,
        backbone: nn.Module,
        position_embedding: nn.Module,
        neck: nn.Module,
        transformer: nn.Module,
        embed_dim: int,
        num_classes: int,
        num_queries_one2one: int,
        num_queries_one2many: int,
        criterion: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        aux_loss: bool = True,
        with_box_refine: bool = False,
        as_two_stage: bool = False,
        select_box_nums_for_evaluation: int = 100,
        device: str = "auto",
        mixed_selection: bool = True,
        k_one2many: int = 6,
        lambda_one2many: float = 1.0,
        *,
        inverse_sigmoid_eps: float = 1e-3,
    ):
        super().__init__(criterion, pixel_mean, pixel_std, select_box_nums_for_evaluation, device)
        if not (with_box_refine and as_two_stage):
            raise ValueError("HDeformableDETR needs with_box_refine=True and as_two_stage=True")
        if mixed_selection != transformer.mixed_selection:
            raise ValueError(
                f"mixed_selection={mixed_selection} differs from the transformer's {transformer.mixed_selection}: "
                "set both to the same value"
            )
        queries = num_queries_one2one + num_queries_one2many
        if transformer.two_stage_num_proposals != queries:
            raise ValueError(
                f"num_queries_one2one={num_queries_one2one} and num_queries_one2many={num_queries_one2many} make "
                f"{queries} queries, but the transformer's two_stage_num_proposals is "
                f"{transformer.two_stage_num_proposals}: set it to the sum"
            )
        self.backbone = backbone
        self.position_embedding = position_embedding
        self.neck = neck
        self.num_queries_one2one = num_queries_one2one
        self.num_queries_one2many = num_queries_one2many
        self.query_embedding = nn.Embedding(queries, embed_dim) if mixed_selection else None
        self.transformer = transformer
        self.embed_dim = embed_dim
        self.num_classes = num_classes
        self.aux_loss = aux_loss
        self.k_one2many = k_one2many
        self.lambda_one2many = lambda_one2many
        self.inverse_sigmoid_eps = inverse_sigmoid_eps

        # One pair of heads per decoder layer, and one for the encoder's proposals.
        count = transformer.decoder.num_layers + 1
        class_embed, bbox_embed = class_head(embed_dim, num_classes), box_head(embed_dim)
        self.class_embed = nn.ModuleList(copy.deepcopy(class_embed) for _ in range(count))
        self.bbox_embed = nn.ModuleList(copy.deepcopy(bbox_embed) for _ in range(count))
        transformer.decoder.bbox_embed = self.bbox_embed
        transformer.decoder.class_embed = self.class_embed

    def forward(self, batched_inputs: Sequence[Mapping]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Return weighted losses in training, else detections.

        Args:
            batched_inputs: per image `image` (3, H, W); in training `instances` with `gt_boxes` and `gt_classes`; at
                inference optionally `height` and `width`, the size of the detections' image.
        """
        images = self.preprocess_image(batched_inputs)
        features, masks = extract_features(self._features, images, exact=not self.training)
        hybrid = self.training and self.k_one2many > 0
        first = self.num_queries_one2one
        count = first + (self.num_queries_one2many if hybrid else 0)
        decoded = self.transformer(
            features,
            masks,
            [self.position_embedding(mask) for mask in masks],
            None if self.query_embedding is None else self.query_embedding.weight[:count],
            hybrid_attention_mask(first, count - first, images.tensor.device) if hybrid else None,
            num_queries=count,
        )
        logits, boxes = predict_layers(
            decoded.states, decoded.starts, self.class_embed, self.bbox_embed, self.inverse_sigmoid_eps
        )
        outputs = prediction_dict(logits[:, :, :first], boxes[:, :, :first], self.aux_loss)
        outputs["enc_outputs"] = {
            "pred_logits": decoded.proposal_logits,
            "pred_boxes": decoded.proposal_boxes,
        }
        if not self.training:
            return self.detect(outputs, images, batched_inputs)

        targets = self.prepare_targets([x["instances"] for x in batched_inputs])
        if not hybrid:
            return self.weigh(self.criterion(outputs, targets))
        outputs |= prediction_dict(logits[:, :, first:], boxes[:, :, first:], self.aux_loss, "_one2many")
        losses = self.train_hybrid(outputs, targets, self.k_one2many, self.criterion, self.lambda_one2many)
        weights = self.criterion.weight_dict
        return self.weigh(losses, {**weights, **{f"{name}_one2many": weights[name] for name in weights}})

    def _features(self, images: Tensor) -> Sequence[Tensor]:
        return self.neck(self.backbone(images))

    def train_hybrid(
        self,
        outputs: Mapping,
        targets: Sequence[Mapping[str, Tensor]],
        k_one2many: int,
        criterion: nn.Module,
        lambda_one2many: float,
    ) -> dict[str, Tensor]:
        """Losses of both sets of queries before weighting; keys of the second set end in `_one2many`.

        Args:
            outputs: predictions of the first set, and of the second set under keys that end in `_one2many`.
            targets: per image `labels` (G,) and `boxes` (G, 4); the second set gets them repeated `k_one2many` times.
        """
        end = "_one2many"
        second = {name.removesuffix(end): value for name, value in outputs.items() if name.endswith(end)}
        repeated = [
            {"labels": t["labels"].repeat(k_one2many), "boxes": t["boxes"].repeat(k_one2many, 1)} for t in targets
        ]
        losses = criterion(outputs, targets)
        extra = criterion(second, repeated)
        return losses | {name + end: loss * lambda_one2many for name, loss in extra.items()}


def hybrid_attention_mask(one2one: int, one2many: int, device: torch.device) -> Tensor:
    """Return a mask (N, N), N = one2one + one2many, true where attention is not allowed: to the other set."""
    second = torch.arange(one2one + one2many, device=device) >= one2one
    return second[:, None] != second
