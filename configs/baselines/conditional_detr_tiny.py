from .dab_detr_tiny import _backbone, dataloader, lr_multiplier, optimizer, train
from .models.conditional_detr_r50 import model

model.backbone = _backbone
model.in_features = ["res4"]
model.in_channels = 256
model.transformer.encoder.num_layers = 2
model.transformer.encoder.attn_dropout = 0.0
model.transformer.encoder.ffn_dropout = 0.0
model.transformer.encoder.feedforward_dim = 256
model.transformer.decoder.num_layers = 3
model.transformer.decoder.attn_dropout = 0.0
model.transformer.decoder.ffn_dropout = 0.0
model.transformer.decoder.feedforward_dim = 256
model.num_classes = 3
model.num_queries = 100
model.select_box_nums_for_evaluation = 100
model.device = "${train.device}"

# Conditional DETR converges even slower than DAB-DETR; see docs/searches.csv for its AP over iterations.
train.max_iter = 8000
train.output_dir = "./output/conditional_detr_tiny"
