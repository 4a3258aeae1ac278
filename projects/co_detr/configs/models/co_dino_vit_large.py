"""Co-DINO on EVA-02 ViT-L: strides 4 to 64 of Sense-X's pyramid, and heavier auxiliary heads."""

from detectron2.config import LazyCall as L

from co_detr.modeling import CoDINO
from co_detr.modeling.eva02 import EVA02Backbone, ViTPyramid
from detrkit.config.load import get_config

from .co_dino import collaboration as _collaboration
from .co_dino import criterion as _criterion

model = get_config("baselines/models/dino_r50.py").model

model.backbone = L(EVA02Backbone)(
    img_size=1536,
    patch_size=16,
    embed_dim=1024,
    depth=24,
    num_heads=16,
    drop_path_rate=0.4,
    window_size=24,
    # Global attention in the blocks 3, 7, 11, 15, 19 and 23.
    window_block_indexes=[0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18, 20, 21, 22],
    use_act_checkpoint=True,
    pretrain_img_size=512,
)
model.neck = L(ViTPyramid)(in_channels="${..backbone.embed_dim}", out_channels="${..embed_dim}")
model.transformer.num_feature_levels = 5
model.size_divisibility = 32
model.num_queries = 1500
model.dn_number = 300
model.box_noise_scale = 0.4
model.select_box_nums_for_evaluation = 1000

_criterion.weight_dict = model.criterion.weight_dict
model.criterion = _criterion
model._target_ = CoDINO
model.collaboration = _collaboration
model.collaboration.strides = [4, 8, 16, 32, 64, 128]
model.collaboration.heads.faster_rcnn.num_convs = 4
model.collaboration.heads.faster_rcnn.num_layers = 1
model.collaboration.heads.faster_rcnn.class_agnostic = True
model.collaboration.heads.faster_rcnn.delta_weights = [20.0, 20.0, 10.0, 10.0]
