from ..common.data.bccd import dataloader
from .dino_lite0_4scale import lr_multiplier, model, optimizer, train

dataloader.train.total_batch_size = 8

# About 13 cells per image, at most 30.
model.num_classes = 3

train.seed = 1
train.max_iter = 2000
train.eval_period = 500
train.checkpointer.period = 200
train.checkpointer.max_to_keep = 2
train.log_period = 50
train.output_dir = "./output/dino_lite0_bccd"
