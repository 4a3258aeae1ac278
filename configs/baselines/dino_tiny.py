from detectron2.config import LazyCall as L
from detrex.layers import ShapeSpec

from .common.tiny import backbone as _backbone
from .common.tiny import dataloader, lr_multiplier, optimizer, train
from .models.dino_r50 import model

model.backbone = _backbone
model.neck.input_shapes = {"res3": L(ShapeSpec)(channels=128), "res4": L(ShapeSpec)(channels=256)}
model.neck.in_features = ["res3", "res4"]
model.transformer.num_feature_levels = 3
model.transformer.encoder.num_layers = 1
model.transformer.encoder.feedforward_dim = 256
model.transformer.decoder.num_layers = 3
model.transformer.decoder.feedforward_dim = 256
model.num_classes = 3
model.num_queries = 30
model.dn_number = 20
model.select_box_nums_for_evaluation = 90
model.device = "${train.device}"
# Without pretrained weights, boxes converge much earlier than classes.
model.criterion.weight_dict.loss_class = 3.0

train.output_dir = "./output/dino_tiny"
