"""From a dataset's dict to a training example for DETR detectors."""

from .detr_dataset_mapper import DetrDatasetMapper

__all__ = ["DetrDatasetMapper"]
