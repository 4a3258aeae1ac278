"""DINO for `make demo`: `dino_tiny` with fewer decoder layers and iterations, trained with Muon."""

from ..common.optim import Muon as optimizer
from .dino_tiny import dataloader, lr_multiplier, model, train

model.transformer.decoder.num_layers = 2

dataloader.train.total_batch_size = 8
optimizer.lr = 2.4e-3
train.max_iter = 700
train.output_dir = "./output/dino_demo"
