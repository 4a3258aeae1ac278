"""Average precision of exported graphs on the test data of a config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from torch import nn

from detrkit.datasets.annotations import annotations_explained
from detrkit.datasets.classes import dataset_names, match_classes
from detrkit.datasets.images import read_image
from detrkit.training.evaluation import evaluate_together, finish_results

from .network import Network


def evaluate_network(cfg: DictConfig, network: Network, name: str) -> dict[str, Any]:
    """Evaluate a network on the test data of a config, image by image, with the network's own preprocessing.

    Args:
        cfg: completed by `session.prepare`; its model and mapper are not used.
        name: of the network, for errors.

    Returns:
        `{task: metrics}`, such as `{"bbox": {"AP": 50.2, ...}}`.

    Raises:
        ValueError: the config has no evaluator, the classes of the data are not those of the network, or an image
            cannot be read.
    """
    names = dataset_names(cfg, "test")
    if "evaluator" not in cfg.dataloader or not names:
        raise ValueError(f"{name} cannot be evaluated: the config has no test data or no dataloader.evaluator")
    if not network.classes.are_numbers:
        match_classes(cfg, ("test",), network.classes, name)
    with annotations_explained(names):
        images = instantiate(cfg.dataloader.test.dataset)
        evaluator = instantiate(cfg.dataloader.evaluator)
        results, error = evaluate_together(
            _Detector(network).eval(), [[image] for image in images], [evaluator], network.soft_nms
        )
        if error is not None:
            raise error
    finish_results(cfg)
    return results


class _Detector(nn.Module):
    """A network with the interface of a detector, for detectron2's evaluation."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        return [{"instances": self._detect(image["file_name"])} for image in inputs]

    def _detect(self, file_name: str) -> Instances:
        pixels = read_image(file_name)
        size = pixels.shape[:2]
        (found,) = self.network.detect([self.network.prepare(pixels)], [size])
        boxes, scores, classes = map(torch.from_numpy, found)
        return Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
