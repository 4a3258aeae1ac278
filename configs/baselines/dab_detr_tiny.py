from .common.tiny import backbone as _backbone
from .common.tiny import dataloader, lr_multiplier, optimizer, train
from .models.dab_detr_r50 import model

# The single feature map must resolve small objects: as in DC5, the last stage is dilated and keeps stride 8.
_backbone.stages[2].stride_per_block = [1, 1]
_backbone.stages[2].dilation = 2
_backbone.out_features = ["res4"]

model.backbone = _backbone
model.in_features = ["res4"]
model.in_channels = 256
model.transformer.encoder.num_layers = 2
model.transformer.encoder.feedforward_dim = 256
model.transformer.decoder.num_layers = 3
model.transformer.decoder.feedforward_dim = 256
model.num_classes = 3
model.num_queries = 100
model.select_box_nums_for_evaluation = 100
model.device = "${train.device}"
# Without pretrained weights, boxes converge much earlier than classes.
model.criterion.weight_dict.loss_class = 3.0

# Dense attention converges in this time only with a pretrained backbone: set train.init_checkpoint as in
# docs/evidence.md.
optimizer.lr = 4e-4
train.max_iter = 5400
train.output_dir = "./output/dab_detr_tiny"
