from ..common.data.bccd import dataloader
from .dino_tiny import lr_multiplier, model, optimizer, train

# About 13 cells per image, at most 30.
model.num_queries = 100
model.select_box_nums_for_evaluation = 100
model.criterion.weight_dict.loss_class = 1.0

optimizer.lr = 1.6e-3
train.max_iter = 2000
train.output_dir = "./output/dino_bccd"
