"""The later paper's loss, with the temperature that its weights were trained with."""

from .align_detr_r50_4scale_24ep import dataloader, lr_multiplier, model, optimizer, train

model.criterion.loss_class_type = "align_loss"
model.criterion.tau = 3.0

train.output_dir = "./output/align_detr_r50_4scale_24ep_align_loss"
