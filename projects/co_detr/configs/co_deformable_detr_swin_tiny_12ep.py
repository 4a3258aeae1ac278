from detrkit.config.load import get_config

from .co_deformable_detr_r50_12ep import dataloader, lr_multiplier, model, optimizer, train

_swin = get_config("baselines/models/swin.py")

model.backbone = _swin.swin_tiny_224
model.backbone.drop_path_rate = 0.2
model.neck.input_shapes = _swin.shapes_of_tiny
model.neck.in_features = ["p1", "p2", "p3"]

optimizer.weight_decay = 0.05

train.init_checkpoint = (
    "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth"
)
train.output_dir = "./output/co_deformable_detr_swin_tiny_12ep"
