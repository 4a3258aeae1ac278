"""Shared settings of the tiny configs: training from scratch on 128-pixel images takes minutes on two CPU cores."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import BottleneckBlock
from detectron2.solver import WarmupParamScheduler
from detrex.modeling.backbone.resnet import BasicStem, ResNet
from fvcore.common.param_scheduler import CosineParamScheduler

from ...common.data.tiny_coco import dataloader
from ...common.optim import AdamW as optimizer
from ...common.train import train

# A narrow ResNet-23: two blocks per stage, largest stride 16.
backbone = L(ResNet)(
    stem=L(BasicStem)(in_channels=3, out_channels=32, norm="BN"),
    stages=[
        L(ResNet.make_stage)(
            block_class=BottleneckBlock,
            num_blocks=2,
            in_channels=in_channels,
            out_channels=out_channels,
            bottleneck_channels=out_channels // 2,
            stride_per_block=[stride, 1],
            norm="BN",
        )
        for in_channels, out_channels, stride in ((32, 64, 1), (64, 128, 2), (128, 256, 2))
    ],
    out_features=["res3", "res4"],
    freeze_at=0,
)

# The best rate for DINO, Align-DETR and Co-DINO with 128 channels; see docs/searches.csv for the search.
optimizer.lr = 8e-4
optimizer.weight_decay = 1e-4

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_factor=0.01,
    warmup_length=0.05,
    warmup_method="linear",
)

train.seed = 1
train.max_iter = 2400
train.eval_period = 0
train.checkpointer.period = 600
train.log_period = 50
train.clip_grad.enabled = True
train.clip_grad.params.max_norm = 0.5
train.clip_grad.params.norm_type = 2
