from .co_dino_tiny import dataloader, lr_multiplier, model, optimizer, train

model.criterion.loss_class_type = "ia_bce_loss"

train.output_dir = "./output/co_align_detr_tiny"
