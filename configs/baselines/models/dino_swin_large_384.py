from .dino_r50 import model
from .swin import shapes_of_large as _shapes
from .swin import swin_large_384 as _backbone

model.backbone = _backbone
model.neck.input_shapes = _shapes
model.neck.in_features = ["p1", "p2", "p3"]
