"""Full-size configs on Swin, ViT and timm, shrunk to what a test can train: a few channels, one layer of each kind."""

from detectron2.config import LazyConfig
from omegaconf import DictConfig

from align_detr._platform import is_upstream
from detrkit.config.catalogue import find_config
from detrkit.config.load import get_config

ROWS = (
    "align_detr_swin_tiny_224_4scale_12ep",
    "align_detr_swin_large_384_5scale_12ep",
    "align_detr_vitdet_base_4scale_12ep",
    "align_h_deformable_detr_swin_tiny_two_stage_12ep",
    "co_dino_swin_large_5scale_12ep",
    "align_detr_timm_4scale_12ep",
)
WIDTH = 16  # channels of the first stage
DIM = 256 if is_upstream() else 32  # detrex computes the positions of its queries for 256 channels


def small(name: str) -> DictConfig:
    """A config by name, for images of 64 pixels on the CPU and drawn data; random weights."""
    cfg = LazyConfig.load(str(find_config(name)))
    model = cfg.model
    _shrink_backbone(model)
    model.embed_dim = DIM
    model.position_embedding.num_pos_feats = DIM // 2
    model.neck.norm_layer.num_groups = 4
    model.num_classes = 3
    for part, layers in (("encoder", 1), ("decoder", 2)):
        model.transformer[part].num_layers = layers
        model.transformer[part].feedforward_dim = 32
    for queries in ("num_queries", "num_queries_one2one", "num_queries_one2many"):
        if queries in model:
            model[queries] = 12
    if "dn_number" in model:
        model.dn_number = 4
    model.select_box_nums_for_evaluation = 20
    if "collaboration" in model:
        rcnn = model.collaboration.heads.faster_rcnn
        rcnn.hidden_dim = 32
        rcnn.num_samples = rcnn.proposals.num_samples = 16
        rcnn.proposals.num_before, rcnn.proposals.num_after = 100, 40
    cfg.dataloader = get_config("common/data/tiny_coco.py").dataloader
    for split in ("train", "test"):
        cfg.dataloader[split].num_workers = 0
    cfg.dataloader.train.total_batch_size = 2
    cfg.dataloader.train.mapper.augmentation[1].short_edge_length = [64]
    cfg.dataloader.test.mapper.augmentation[0].short_edge_length = 64
    cfg.train.update(init_checkpoint="", device="cpu", seed=1, log_period=1, max_iter=2, eval_period=0)
    model.device = "cpu"
    return cfg


def _shrink_backbone(model: DictConfig) -> None:
    backbone = model.backbone
    if "depths" in backbone:
        backbone.update(embed_dim=WIDTH, depths=[1, 2, 1, 1], num_heads=[1, 2, 4, 4], window_size=4)
        for name, shape in model.neck.input_shapes.items():
            shape.channels = WIDTH * 2 ** int(name[1:])
    elif "net" in backbone:
        backbone.net.update(img_size=64, embed_dim=24, depth=3, num_heads=3, window_size=3, window_block_indexes=[0, 2])
        backbone.out_channels = 32
        for shape in model.neck.input_shapes.values():
            shape.channels = 32
    else:
        backbone.backbone.model_name = "convnext_atto"
