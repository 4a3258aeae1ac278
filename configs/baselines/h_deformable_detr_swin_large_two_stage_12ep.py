from .h_deformable_detr_r50_two_stage_12ep import dataloader, lr_multiplier, optimizer, train
from .models.h_deformable_detr_swin_large import model

model.device = "${train.device}"

train.init_checkpoint = (
    "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_large_patch4_window7_224_22k.pth"
)
train.output_dir = "./output/h_deformable_detr_swin_large_two_stage_12ep"
