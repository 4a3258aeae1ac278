from detectron2.config import LazyCall as L
from detrex.layers import ShapeSpec

from .common.tiny import backbone as _backbone
from .common.tiny import dataloader, lr_multiplier, optimizer, train
from .models.h_deformable_detr_r50 import model

model.backbone = _backbone
model.neck.input_shapes = {"res3": L(ShapeSpec)(channels=128), "res4": L(ShapeSpec)(channels=256)}
model.neck.in_features = ["res3", "res4"]
model.transformer.num_feature_levels = 3
model.transformer.encoder.num_layers = 1
model.transformer.encoder.feedforward_dim = 256
model.transformer.decoder.num_layers = 3
model.transformer.decoder.feedforward_dim = 256
model.num_classes = 3
model.num_queries_one2one = 40
model.num_queries_one2many = 80
model.k_one2many = 4
model.select_box_nums_for_evaluation = 100
model.device = "${train.device}"
# Without pretrained weights, boxes converge much earlier than classes.
model.criterion.weight_dict.loss_class = 3.0

# The better of two rates for H-DETR's own supervision; see docs/searches.csv for the search.
optimizer.lr = 4e-4
train.output_dir = "./output/h_deformable_detr_tiny"
