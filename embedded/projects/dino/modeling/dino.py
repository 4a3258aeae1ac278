"""The DINO detector."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.visualizer import Visualizer
from projects.detr_common import (
    Detector,
    box_head,
    class_head,
    extract_features,
    predict_layers,
    prediction_dict,
)
from torch import Tensor, nn

from .denoising import denoising_attention_mask, denoising_queries


class DINO(Detector):
    """DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object Detection (arXiv 2203.03605).

    Args:
        backbone: maps normalised images (B, 3, H, W) to a dict of feature maps.
        position_embedding: maps padding masks (B, H, W) to embeddings (B, embed_dim, H, W).
        neck: maps the backbone's dict to a list of maps of `embed_dim` channels, finest first.
        transformer: a `DINOTransformer`.
        embed_dim: channels of queries and tokens.
        num_classes: number of object classes; there is no background class.
        num_queries: number of matching queries, equal to the transformer's `two_stage_num_proposals`.
        criterion: called as `criterion(outputs, targets, dn_metas)`; `criterion.weight_dict` scales its losses.
        pixel_mean, pixel_std: per channel, in the units of the input images.
        aux_loss: supervise the intermediate decoder layers too.
        select_box_nums_for_evaluation: detections per image.
        device: see `Detector`.
        dn_number: number of denoising queries, see `denoising_queries`; 0: none.
        label_noise_ratio, box_noise_scale: their noise.
        input_format: channel order of the input images, for visualisations only.
        vis_period: iterations between visualisations in the event storage; 0: none.
        inverse_sigmoid_eps: see `DeformableDecoder`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        position_embedding: nn.Module,
        neck: nn.Module,
        transformer: nn.Module,
        embed_dim: int,
        num_classes: int,
        num_queries: int,
        criterion: nn.Module,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        aux_loss: bool = True,
        select_box_nums_for_evaluation: int = 300,
        device: str = "auto",
        dn_number: int = 100,
        label_noise_ratio: float = 0.2,
        box_noise_scale: float = 1.0,
        input_format: str | None = "RGB",
        vis_period: int = 0,
        *,
        inverse_sigmoid_eps: float = 1e-3,
    ):
        super().__init__(criterion, pixel_mean, pixel_std, select_box_nums_for_evaluation, device)
        if num_queries != transformer.two_stage_num_proposals:
            raise ValueError(
                f"num_queries={num_queries} differs from the transformer's two_stage_num_proposals="
                f"{transformer.two_stage_num_proposals}: set both to the same number"
            )
        self.backbone = backbone
        self.position_embedding = position_embedding
        self.neck = neck
        self.transformer = transformer
        self.embed_dim = embed_dim
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.aux_loss = aux_loss
        self.dn_number = dn_number
        self.label_noise_ratio = label_noise_ratio
        self.box_noise_scale = box_noise_scale
        self.input_format = input_format
        self.vis_period = vis_period
        self.inverse_sigmoid_eps = inverse_sigmoid_eps

        # One pair of heads per decoder layer, and one for the encoder's proposals.
        count = transformer.decoder.num_layers + 1
        class_embed, bbox_embed = class_head(embed_dim, num_classes), box_head(embed_dim)
        self.class_embed = nn.ModuleList(copy.deepcopy(class_embed) for _ in range(count))
        self.bbox_embed = nn.ModuleList(copy.deepcopy(bbox_embed) for _ in range(count))
        transformer.decoder.class_embed = self.class_embed
        transformer.decoder.bbox_embed = self.bbox_embed
        self.label_enc = nn.Embedding(num_classes, embed_dim)

    def forward(self, batched_inputs: Sequence[Mapping]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Return weighted losses in training, else detections.

        Args:
            batched_inputs: per image `image` (3, H, W); in training `instances` with `gt_boxes` and `gt_classes`; at
                inference optionally `height` and `width`, the size of the detections' image.
        """
        images = self.preprocess_image(batched_inputs)
        features, masks = extract_features(self._features, images, exact=not self.training)
        positions = [self.position_embedding(mask) for mask in masks]

        targets, queries = [], (None, None, None, None)
        if self.training:
            targets = self.prepare_targets([x["instances"] for x in batched_inputs])
            queries = self.prepare_for_cdn(
                targets,
                self.dn_number,
                self.label_noise_ratio,
                self.box_noise_scale,
                self.num_queries,
                self.num_classes,
                self.embed_dim,
                self.label_enc,
            )
        content, boxes, attn_mask, dn_metas = queries

        decoded = self.transformer(features, masks, positions, (content, boxes), attn_masks=attn_mask)
        # Each parameter needs a gradient in every step, also without denoising: distributed training waits for all.
        states = decoded.states + 0.0 * self.label_enc.weight.sum()
        logits, boxes = predict_layers(
            states, decoded.starts, self.class_embed, self.bbox_embed, self.inverse_sigmoid_eps
        )
        logits, boxes = self.dn_post_process(logits, boxes, dn_metas)

        outputs = prediction_dict(logits, boxes, self.aux_loss)
        outputs["enc_outputs"] = {
            "pred_logits": self.class_embed[-1](decoded.proposal_states),
            "pred_boxes": decoded.proposal_boxes,
        }
        if not self.training:
            return self.detect(outputs, images, batched_inputs)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            with torch.no_grad():
                results = self.inference(outputs["pred_logits"], outputs["pred_boxes"], images.image_sizes)
            self.visualize_training(batched_inputs, results)
        return self.weigh(self.criterion(outputs, targets, dn_metas))

    def _features(self, images: Tensor) -> Sequence[Tensor]:
        return self.neck(self.backbone(images))

    def prepare_for_cdn(
        self,
        targets: Sequence[Mapping[str, Tensor]],
        dn_number: int,
        label_noise_ratio: float,
        box_noise_scale: float,
        num_queries: int,
        num_classes: int,
        hidden_dim: int,
        label_enc: nn.Module,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, dict | None]:
        """Prepare denoising queries: content (B, D, E), logits of boxes (B, D, 4), attention mask and `dn_metas`.

        The mask is (D + N, D + N). Without denoising queries all four are None. See `denoising_queries`.
        """
        queries = denoising_queries(targets, label_enc, num_classes, dn_number, label_noise_ratio, box_noise_scale)
        if queries is None:
            return None, None, None, None
        mask = denoising_attention_mask(queries.groups, queries.group_size, num_queries, queries.boxes.device)
        dn_metas = {"dn_num": queries.groups, "single_padding": queries.group_size}
        return queries.content, queries.boxes, mask, dn_metas

    def dn_post_process(
        self, outputs_class: Tensor, outputs_coord: Tensor, dn_metas: dict | None
    ) -> tuple[Tensor, Tensor]:
        """Split off the predictions of denoising queries, into `dn_metas["output_known_lbs_bboxes"]`.

        Returns logits (L, B, N, C) and boxes (L, B, N, 4) of the matching queries.
        """
        if dn_metas is None:
            return outputs_class, outputs_coord
        count = dn_metas["dn_num"] * dn_metas["single_padding"]
        dn_metas["output_known_lbs_bboxes"] = prediction_dict(
            outputs_class[:, :, :count], outputs_coord[:, :, :count], self.aux_loss
        )
        return outputs_class[:, :, count:], outputs_coord[:, :, count:]

    def visualize_training(self, batched_inputs: Sequence[Mapping], results: Sequence[Instances]) -> None:
        """Draw the first image for the event storage: ground truth on the left, the 20 best detections on the right."""
        first = batched_inputs[0]
        image = convert_image_to_rgb(first["image"].permute(1, 2, 0).cpu(), self.input_format)
        halves = [
            Visualizer(image, None).overlay_instances(boxes=boxes.tensor.cpu()).get_image()
            for boxes in (first["instances"].gt_boxes, results[0].pred_boxes[:20])
        ]
        drawing = np.concatenate(halves, axis=1).transpose(2, 0, 1)
        get_event_storage().put_image("Left: ground truth; right: predictions", drawing)
