from ..common.coco_schedule import lr_multiplier_12ep as lr_multiplier
from .common.coco import dataloader, optimizer, train
from .models.dino_swin_small_224 import model

model.device = "${train.device}"

train.init_checkpoint = (
    "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_small_patch4_window7_224.pth"
)
train.output_dir = "./output/dino_swin_small_224_4scale_12ep"
train.max_iter = 90000
train.eval_period = 5000
train.checkpointer.period = 5000
