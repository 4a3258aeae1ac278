from ..common.coco_schedule import lr_multiplier_50ep as lr_multiplier
from .dino_vitdet_base_4scale_12ep import dataloader, model, optimizer, train

train.max_iter = 375000
train.output_dir = "./output/dino_vitdet_base_4scale_50ep"
