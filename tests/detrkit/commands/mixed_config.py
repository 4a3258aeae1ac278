"""align_detr_tiny, smaller yet, on images of several shapes: everything that a resumed run has to take up matters."""

import sys
from pathlib import Path

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from ....projects.align_detr.configs.align_detr_tiny import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))

import mixed_data  # noqa: E402

mixed_data.register()

dataloader.train.dataset.names = "mixed_train"
dataloader.test.dataset.names = "mixed_val"
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = 0
dataloader.test.num_workers = 0
dataloader.train.mapper._target_ = mixed_data.Mapper
dataloader.train.mapper.augmentation[1].short_edge_length = [64, 80]
dataloader.train.mapper.augmentation_with_crop = [
    L(T.RandomFlip)(),
    L(T.RandomCrop)(crop_type="relative_range", crop_size=[0.6, 0.6]),
    L(T.ResizeShortestEdge)(short_edge_length=[64, 80], sample_style="choice"),
]
dataloader.test.mapper.augmentation[0].short_edge_length = 64

model.num_queries = 8
model.dn_number = 4
model.select_box_nums_for_evaluation = 8
model.transformer.decoder.num_layers = 2
model.transformer.encoder.num_heads = 2
model.transformer.decoder.num_heads = 2
model.transformer.encoder.feedforward_dim = 32
model.transformer.decoder.feedforward_dim = 32
model.transformer.encoder.attn_dropout = 0.1
model.transformer.encoder.ffn_dropout = 0.1
model.transformer.decoder.attn_dropout = 0.1
model.transformer.decoder.ffn_dropout = 0.1

train.device = "cpu"
train.max_iter = 12
train.eval_period = 6
train.checkpointer.period = 4
train.log_period = 3
train.report.enabled = False
train.model_ema.enabled = True
train.model_ema.decay = 0.9
