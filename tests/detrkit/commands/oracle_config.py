"""A training of the detector of `oracle.py`, which takes no time and has to reach AP 100."""

import sys
from pathlib import Path

import torch
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.train import train

sys.path.insert(0, str(Path(__file__).parent))

import oracle  # noqa: E402

oracle.register()

model = L(oracle.Oracle)(num_classes=3)
dataloader.train.dataset.names, dataloader.test.dataset.names = "oracle_train", "oracle_val"
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = dataloader.test.num_workers = 0
dataloader.train.mapper.augmentation[1].short_edge_length = [64]
dataloader.train.mapper.augmentation_with_crop = None
dataloader.test.mapper.augmentation[0].short_edge_length = 64
optimizer = L(torch.optim.AdamW)(params=L(get_default_optimizer_params)(base_lr="${..lr}"), lr=0.01, weight_decay=1e-4)
lr_multiplier = L(CosineParamScheduler)(start_value=1.0, end_value=0.1)

train.max_iter = 4
train.eval_period = 2
train.seed = 1
train.device = "cpu"
train.log_period = 1
train.report.enabled = False
train.checkpointer.period = 2
