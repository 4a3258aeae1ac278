"""Training settings, except model, data and optimizer."""

from detrkit.runtime.device import best_device

train = dict(
    output_dir="./output",
    # File or URL of the initial weights; "": random weights.
    init_checkpoint="",
    max_iter=90000,
    # Batches of one optimizer step. The losses are those of one batch of so many times total_batch_size images.
    accumulate=1,
    # dtype: "float16" with loss scaling, or "bfloat16".
    amp=dict(enabled=False, dtype="float16"),
    ddp=dict(
        broadcast_buffers=False,
        find_unused_parameters=False,
        fp16_compression=False,
    ),
    # params: arguments of torch.nn.utils.clip_grad_norm_.
    clip_grad=dict(enabled=False, params=dict(max_norm=0.1, norm_type=2)),
    # stages: stop training the first stages of the backbone; 1: stem or patch embedding, 2: the first group of layers
    # too. batch_norm: keep statistics and parameters of its batch norms.
    freeze=dict(stages=0, batch_norm=False),
    # Factor of the learning rate from each stage of the backbone to the one before; 1.0: the same rate.
    layer_decay=1.0,
    # Share of the images below which a class is rare; its images come more often. 0.0: each image once in an epoch.
    repeat_threshold=0.0,
    # Share of the draws that each dataset of dataloader.train.dataset.names has: "size" (each image once in an epoch),
    # "sqrt" (of the size), "equal", or a list with a number for each, such as [2, 1].
    dataset_shares="size",
    # Training images made of several: probability of four images in one, and of objects pasted from another image.
    mix=dict(mosaic=0.0, copy_paste=0.0, most_pasted=5),
    # Number of consecutive steps with non-finite losses or gradients to skip; one more ends the training.
    skip_nonfinite=0,
    # End all processes when one makes no progress for this many seconds while others wait for it. A slow file system
    # may take minutes. 0: never.
    hang_seconds=900,
    # Divide the optimizer's state among the processes. AdamW's state is twice the size of the weights.
    shard_optimizer=False,
    # Negative: a random seed.
    seed=-1,
    # Keep only the inputs of the layers of backbone, encoder and decoder for the backward pass, which runs each layer
    # again: less memory, the same losses and gradients.
    activation_checkpointing=False,
    # Compile backbone, encoder and decoder with torch.compile. It takes minutes, and again for new image sizes.
    compile=False,
    # Run a few iterations of training, evaluation and checkpointing to test a config.
    fast_dev_run=dict(enabled=False),
    checkpointer=dict(period=5000, max_to_keep=100),
    # In iterations; 0: evaluate only at the end.
    eval_period=5000,
    # Metric of an evaluation that model_best.pth has the highest value of, such as "bbox/AP50" or "bbox/AP-person".
    best_metric="bbox/AP",
    # End after so many evaluations in a row without a better metric. patience=0: never; metric "": train.best_metric.
    early_stopping=dict(patience=0, metric="", min_delta=0.0),
    log_period=20,
    # At evaluation and in `Detector`: lower the scores of detections whose IoU with a better one of their class is
    # above this number (linear soft-NMS). 0: off.
    soft_nms=0.0,
    # Test-time augmentation, at evaluation and in `Detector`: detect at several sizes and in the mirrored images, and
    # merge. min_sizes: shorter sides in pixels; []: that of the test mapper. max_size: limit of the longer side; 0: the
    # test mapper's, in proportion. merge: "wbf" (weighted box fusion) or "soft_nms", with the threshold iou.
    test_aug=dict(enabled=False, min_sizes=[], max_size=0, flip=True, merge="wbf", iou=0.55),
    # Write output_dir/report.html at each evaluation.
    report=dict(enabled=True),
    # Further loggers besides TensorBoard and metrics.json: "csv" (metrics.csv), "mlflow".
    loggers=[],
    # "": MLflow's environment variables or defaults; run_name "": the name of the output folder.
    mlflow=dict(tracking_uri="", experiment="", run_name=""),
    # params: arguments of wandb.init.
    wandb=dict(
        enabled=False,
        params=dict(dir="./wandb_output", project="align_detr", name="align_detr_experiment"),
    ),
    # device: "": the model's. If enabled, evaluation uses the averaged weights, and also the plain weights unless
    # use_ema_weights_for_eval_only is set.
    model_ema=dict(enabled=False, decay=0.999, device="", use_ema_weights_for_eval_only=False),
    # "cuda", "cuda:1", "mps", "cpu" or "auto". The default is a GPU if available, else the CPU.
    device=best_device(),
)
