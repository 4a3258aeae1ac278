from .co_align_detr_tiny import dataloader, lr_multiplier, model, optimizer, train
from .co_dino_tiny_equal_time import train as _equal_time

train.max_iter = _equal_time.max_iter
train.output_dir = "./output/co_align_detr_tiny_equal_time"
