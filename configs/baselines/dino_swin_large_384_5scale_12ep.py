from detectron2.config import LazyCall as L
from detrex.layers import ShapeSpec

from .dino_swin_large_384_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

# Strides 4 to 64.
model.backbone.out_indices = [0, 1, 2, 3]
model.neck.in_features = ["p0", "p1", "p2", "p3"]
model.neck.input_shapes.p0 = L(ShapeSpec)(channels=192)
model.transformer.num_feature_levels = 5

train.output_dir = "./output/dino_swin_large_384_5scale_12ep"
