from .conditional_detr_r50_50ep import dataloader, lr_multiplier, optimizer, train
from .models.conditional_detr_r50_dc5 import model

model.device = "${train.device}"

train.output_dir = "./output/conditional_detr_r50_dc5_50ep"
