from ..common.coco_schedule import lr_multiplier_50ep as lr_multiplier
from .common.coco import dataloader, optimizer, train
from .models.deformable_detr_r50_two_stage import model

model.device = "${train.device}"

optimizer.lr = 2e-4
optimizer.params.lr_factor_func.sampling_offsets = 0.1
optimizer.params.lr_factor_func.reference_points = 0.1

train.output_dir = "./output/deformable_detr_r50_two_stage_50ep"
train.max_iter = 375000
train.eval_period = 7500
train.checkpointer.period = 7500
