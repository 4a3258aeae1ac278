from detectron2.config import LazyCall as L
from detrex.layers import ShapeSpec

from .dino_r50 import model

# Strides 4 to 64.
model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.in_features = ["res2", "res3", "res4", "res5"]
model.neck.input_shapes.res2 = L(ShapeSpec)(channels=256)
model.transformer.num_feature_levels = 5
