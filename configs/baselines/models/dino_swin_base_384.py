from .dino_r50 import model
from .swin import shapes_of_base as _shapes
from .swin import swin_base_384 as _backbone

model.backbone = _backbone
model.neck.input_shapes = _shapes
model.neck.in_features = ["p1", "p2", "p3"]
