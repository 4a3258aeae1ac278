from ..common.coco_schedule import lr_multiplier_12ep as lr_multiplier
from .common.coco import dataloader, optimizer, train
from .models.h_deformable_detr_r50 import model

model.device = "${train.device}"

optimizer.lr = 2e-4
optimizer.params.lr_factor_func.sampling_offsets = 0.1
optimizer.params.lr_factor_func.reference_points = 0.1

train.output_dir = "./output/h_deformable_detr_r50_two_stage_12ep"
train.max_iter = 90000
train.eval_period = 5000
train.checkpointer.period = 5000
