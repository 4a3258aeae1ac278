"""Measure how well a detector's scores agree with its boxes: figures and plots."""

from .discriminability import count_places, curve, discriminability, encoder_maps, place_scores
from .figures import AlignmentTable, aligned_logits, examine, headline, summarize
from .predictions import LayerPredictions, batches_of_one_size, detections, predict_layers

__all__ = [
    "AlignmentTable",
    "LayerPredictions",
    "aligned_logits",
    "batches_of_one_size",
    "count_places",
    "curve",
    "detections",
    "discriminability",
    "encoder_maps",
    "examine",
    "headline",
    "place_scores",
    "predict_layers",
    "summarize",
]
