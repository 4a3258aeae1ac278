"""Learning-rate multipliers for COCO with 16 images per batch: about 7500 iterations per epoch."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

ITERATIONS_PER_EPOCH = 7500


def step_schedule(milestones, warmup=0.0):
    """Start with 1 and divide by 10 at each milestone; the last milestone is the end of training.

    Milestones and `warmup` are in iterations. Warmup rises linearly from 0.001.
    """
    values = [0.1**i for i in range(len(milestones))]
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(values=values, milestones=milestones),
        warmup_factor=0.001,
        warmup_length=warmup / milestones[-1],
        warmup_method="linear",
    )


def epochs(total, drop, warmup=0.0):
    """Schedule of `total` epochs: warm up for `warmup` epochs, drop the rate after `drop` epochs."""
    return step_schedule(
        [drop * ITERATIONS_PER_EPOCH, total * ITERATIONS_PER_EPOCH], warmup * ITERATIONS_PER_EPOCH
    )


# detectron2's "1x": about 12 epochs, with two drops.
lr_multiplier_1x = step_schedule([60000, 80000, 90000], warmup=1000)

lr_multiplier_12ep = epochs(12, drop=11)
lr_multiplier_24ep = epochs(24, drop=20)
lr_multiplier_36ep = epochs(36, drop=30)
lr_multiplier_50ep = epochs(50, drop=40)

lr_multiplier_12ep_warmup = epochs(12, drop=11, warmup=1e-3)

# 12 and 50 epochs of detrex's DINO on ViT-L, which needs the warmup.
lr_multiplier_12ep_vit_large = step_schedule([72000, 90000], warmup=250)
lr_multiplier_50ep_vit_large = step_schedule([300000, 375000], warmup=250)
