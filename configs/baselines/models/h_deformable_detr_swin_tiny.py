from .h_deformable_detr_r50 import model
from .swin import shapes_of_tiny as _shapes
from .swin import swin_tiny_224 as _backbone

model.backbone = _backbone
model.backbone.drop_path_rate = 0.2
model.neck.input_shapes = _shapes
model.neck.in_features = ["p1", "p2", "p3"]
