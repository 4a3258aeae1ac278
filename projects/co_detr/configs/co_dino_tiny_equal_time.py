from .co_dino_tiny import dataloader, lr_multiplier, model, optimizer, train

# As many iterations as take the time of DINO's 2400: a step takes twice as long.
train.max_iter = 1200
train.output_dir = "./output/co_dino_tiny_equal_time"
