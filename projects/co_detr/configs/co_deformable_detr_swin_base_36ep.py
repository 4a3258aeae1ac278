from detrex.config import get_config

from .co_deformable_detr_swin_base_12ep import dataloader, model, optimizer, train

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_36ep

model.backbone.drop_path_rate = 0.4

train.max_iter = 270000
train.output_dir = "./output/co_deformable_detr_swin_base_36ep"
