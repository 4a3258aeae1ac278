"""How to train: everything that is neither the model, the data nor the optimizer."""

from detrkit.runtime.device import best_device

train = dict(
    output_dir="./output",
    # A file or URL to start from; "" for random weights.
    init_checkpoint="",
    max_iter=90000,
    # dtype: "float16" with loss scaling, or "bfloat16".
    amp=dict(enabled=False, dtype="float16"),
    ddp=dict(
        broadcast_buffers=False,
        find_unused_parameters=False,
        fp16_compression=False,
    ),
    # params: of torch.nn.utils.clip_grad_norm_.
    clip_grad=dict(enabled=False, params=dict(max_norm=0.1, norm_type=2)),
    # So many steps in a row with losses or gradients that are not finite are skipped; one more ends the training.
    skip_nonfinite=0,
    # A process that makes no progress for so many seconds while others wait for it counts as hanging, and all of them
    # end. A slow file system may take minutes. 0: never.
    hang_seconds=900,
    # Spread the optimizer's state over the processes: for AdamW twice the size of the weights, divided by them.
    shard_optimizer=False,
    # Below 0: a random one.
    seed=-1,
    # Keep only the inputs of the layers of backbone, encoder and decoder for the backward pass, which runs each layer
    # again: less memory, the same losses and gradients.
    activation_checkpointing=False,
    # Backbone, encoder and decoder by torch.compile; that takes minutes at first, and again for other image sizes.
    compile=False,
    # A few iterations with everything in them, to see whether a config works.
    fast_dev_run=dict(enabled=False),
    checkpointer=dict(period=5000, max_to_keep=100),
    # In iterations; 0 evaluates at the end only.
    eval_period=5000,
    log_period=20,
    # output_dir/report.html, refreshed at each evaluation.
    report=dict(enabled=True),
    # params: of wandb.init.
    wandb=dict(
        enabled=False,
        params=dict(dir="./wandb_output", project="align_detr", name="align_detr_experiment"),
    ),
    # device: "" for the model's. Evaluation always uses the averaged weights if there are any, and, unless
    # use_ema_weights_for_eval_only, the plain ones as well.
    model_ema=dict(enabled=False, decay=0.999, device="", use_ema_weights_for_eval_only=False),
    # "cuda", "cuda:1", "mps", "cpu", or "auto" for what this is: a GPU if there is one.
    device=best_device(),
)
