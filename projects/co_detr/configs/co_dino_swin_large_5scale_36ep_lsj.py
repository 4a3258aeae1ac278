from detrex.config import get_config

from .co_dino_swin_large_5scale_12ep_lsj import dataloader, model, optimizer, train

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_36ep

model.backbone.drop_path_rate = 0.5

train.max_iter = 270000
train.output_dir = "./output/co_dino_swin_large_5scale_36ep_lsj"
