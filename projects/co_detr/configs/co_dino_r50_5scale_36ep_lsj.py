from detrex.config import get_config

from .co_dino_r50_5scale_12ep_lsj import dataloader, model, optimizer, train

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_36ep

train.max_iter = 270000
train.output_dir = "./output/co_dino_r50_5scale_36ep_lsj"
