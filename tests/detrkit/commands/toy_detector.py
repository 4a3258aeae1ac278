"""A model, data and an evaluator that take no time, for what is around them."""

import os

import torch
from detectron2.evaluation import DatasetEvaluator
from torch import nn


class ToyDetector(nn.Module):
    """Regresses 1 from four numbers, and says so in losses named like a detector's.

    Args:
        fail_at: the training step, from 0, at which it has an invalid value, as a broken image file would be; of the
            environment variable FAIL_AT if there is one, which is not of the config.
        scale: of the classification loss; inf makes it not finite.
    """

    def __init__(self, width=4, device="cpu", scale=1.0, fail_at=None, num_classes=2):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 1)
        self.scale, self.steps = scale, 0
        self.fail_at = int(os.environ["FAIL_AT"]) if "FAIL_AT" in os.environ else fail_at

    def forward(self, batch):
        score = self.head(self.norm(torch.stack(batch)))
        if not self.training:
            return [{"score": value} for value in score.flatten().tolist()]
        if self.steps == self.fail_at:
            raise ValueError("image 7 is\nbroken")
        self.steps += 1
        return {
            "loss_class": (score - 1).square().mean() * self.scale,
            "loss_bbox": score.abs().mean(),
            "loss_class_0": score.square().mean(),
        }


class TrainData:
    """The same batch for ever."""

    def __init__(self, batch_size=4):
        self.batch = list(torch.randn(batch_size, 4, generator=torch.Generator().manual_seed(0)))

    def __iter__(self):
        while True:
            yield self.batch


def plain_sgd(params, lr, weight_decay, **ignored):
    """SGD in place of a config's AdamW: an override cannot delete the arguments that SGD does not have."""
    return torch.optim.SGD(params, lr, weight_decay=weight_decay)


def test_data():
    return [[torch.ones(4)], [torch.zeros(4)]]


class SumOfScores(DatasetEvaluator):
    def reset(self):
        self.scores = []

    def process(self, inputs, outputs):
        self.scores += [output["score"] for output in outputs]

    def evaluate(self):
        return {"bbox": {"AP": sum(self.scores)}}
