from .dab_detr_r50_50ep import dataloader, lr_multiplier, optimizer, train
from .models.dab_detr_r50_dc5 import model

model.device = "${train.device}"

train.output_dir = "./output/dab_detr_r50_dc5_50ep"
