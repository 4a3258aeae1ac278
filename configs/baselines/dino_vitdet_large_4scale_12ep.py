from ..common.coco_schedule import lr_multiplier_12ep_vit_large as lr_multiplier
from .dino_vitdet_base_4scale_12ep import dataloader, model, optimizer, train

model.backbone.net.embed_dim = 1024
model.backbone.net.depth = 24
model.backbone.net.num_heads = 16
model.backbone.net.drop_path_rate = 0.4
# Global attention in the blocks 5, 11, 17 and 23.
model.backbone.net.window_block_indexes = [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22]

train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_large.pth"
train.output_dir = "./output/dino_vitdet_large_4scale_12ep"
