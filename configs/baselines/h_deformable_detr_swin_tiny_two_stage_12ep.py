from .h_deformable_detr_r50_two_stage_12ep import dataloader, lr_multiplier, optimizer, train
from .models.h_deformable_detr_swin_tiny import model

model.device = "${train.device}"

train.init_checkpoint = (
    "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth"
)
train.output_dir = "./output/h_deformable_detr_swin_tiny_two_stage_12ep"
