from ..common.data.neu_det import dataloader
from .dino_lite0_4scale import lr_multiplier, model, optimizer, train

# At most 9 defects per image.
model.num_classes = 6
model.num_queries = 60
model.select_box_nums_for_evaluation = 60

# Half of Align-DETR's: each has its best rate here, see docs/evidence.md.
optimizer.lr = 4e-4

train.seed = 1
train.max_iter = 6000
train.eval_period = 1000
train.checkpointer.period = 200
train.checkpointer.max_to_keep = 2
train.log_period = 50
train.output_dir = "./output/dino_lite0_neu_det"
