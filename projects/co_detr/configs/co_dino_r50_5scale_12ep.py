from detectron2.config import LazyCall as L
from detrex.layers import ShapeSpec

from .co_dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

# Strides 4 to 64.
model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.in_features = ["res2", "res3", "res4", "res5"]
model.neck.input_shapes.res2 = L(ShapeSpec)(channels=256)
model.transformer.num_feature_levels = 5
model.collaboration.strides = [4, 8, 16, 32, 64, 128]

train.output_dir = "./output/co_dino_r50_5scale_12ep"
