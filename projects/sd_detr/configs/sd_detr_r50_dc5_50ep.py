from .sd_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

# DC5: res5 keeps the resolution of res4; its 3x3 convolutions are dilated.
model.backbone.stages.res5_dilation = 2

train.output_dir = "./output/sd_detr_r50_dc5_50ep"
