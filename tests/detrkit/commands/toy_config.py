import sys
from pathlib import Path

import torch
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler

from ....configs.common.train import train

sys.path.insert(0, str(Path(__file__).parent))

from toy_detector import SumOfScores, ToyDetector, TrainData, test_data  # noqa: E402

model = L(ToyDetector)(width=4)
dataloader = dict(train=L(TrainData)(batch_size=4), test=L(test_data)(), evaluator=L(SumOfScores)())
optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}"), lr=0.1, betas=(0.9, 0.999), weight_decay=1e-4
)
lr_multiplier = L(CosineParamScheduler)(start_value=1.0, end_value=0.1)

train.max_iter = 6
train.seed = 1
train.device = "cpu"
train.log_period = 1
train.report.enabled = False
train.eval_period = 3
train.checkpointer.period = 3
train.clip_grad.enabled = True
train.model_ema.enabled = True
train.model_ema.decay = 0.5
