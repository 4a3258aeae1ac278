from detrex.config import get_config

from .align_h_deformable_detr_r50_two_stage_12ep import dataloader, model, optimizer, train

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_36ep

train.max_iter = 270000
train.output_dir = "./output/align_h_deformable_detr_r50_two_stage_36ep"
