from ..common.coco_schedule import lr_multiplier_36ep as lr_multiplier
from .h_deformable_detr_swin_large_two_stage_12ep import dataloader, model, optimizer, train

model.backbone.drop_path_rate = 0.5

train.max_iter = 270000
train.output_dir = "./output/h_deformable_detr_swin_large_two_stage_36ep"
