from ..common.coco_schedule import lr_multiplier_36ep as lr_multiplier
from .h_deformable_detr_r50_two_stage_12ep import dataloader, model, optimizer, train

train.max_iter = 270000
train.output_dir = "./output/h_deformable_detr_r50_two_stage_36ep"
