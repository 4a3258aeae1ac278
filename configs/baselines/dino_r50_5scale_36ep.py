from .dino_r50_4scale_36ep import dataloader, lr_multiplier, optimizer, train
from .models.dino_r50_5scale import model

model.device = "${train.device}"

train.output_dir = "./output/dino_r50_5scale_36ep"
