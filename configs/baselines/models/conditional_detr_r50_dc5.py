from .conditional_detr_r50 import model

# DC5: res5 keeps the resolution of res4; its 3x3 convolutions are dilated.
model.backbone.stages.res5_dilation = 2
