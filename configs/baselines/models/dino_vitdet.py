"""DINO on a plain ViT-B and a pyramid of its one feature map: strides 8 to 64."""

from detectron2.config import LazyCall as L
from detectron2.modeling import SimpleFeaturePyramid, ViT
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detrex.layers import ShapeSpec
from projects.detr_common import layer_norm

from .dino_r50 import model

model.backbone = L(SimpleFeaturePyramid)(
    net=L(ViT)(
        img_size=1024,
        patch_size=16,
        embed_dim=768,
        depth=12,
        num_heads=12,
        drop_path_rate=0.1,
        window_size=14,
        mlp_ratio=4,
        qkv_bias=True,
        norm_layer=L(layer_norm)(eps=1e-6),
        # Global attention in the blocks 2, 5, 8 and 11.
        window_block_indexes=[0, 1, 3, 4, 6, 7, 9, 10],
        residual_block_indexes=[],
        use_rel_pos=True,
        out_feature="last_feat",
    ),
    in_feature="${.net.out_feature}",
    out_channels=256,
    scale_factors=[2.0, 1.0, 0.5],
    top_block=L(LastLevelMaxPool)(),
    norm="LN",
    square_pad=1024,
)

model.neck.input_shapes = {
    "p3": L(ShapeSpec)(channels=256),
    "p4": L(ShapeSpec)(channels=256),
    "p5": L(ShapeSpec)(channels=256),
    "p6": L(ShapeSpec)(channels=256),
}
model.neck.in_features = ["p3", "p4", "p5", "p6"]
