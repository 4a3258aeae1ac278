"""Swin Transformers with the stochastic depth of detrex's DINO, and the channels of their feature maps.

`p0` to `p3` have strides of 4, 8, 16 and 32 pixels.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import SwinTransformer
from detrex.layers import ShapeSpec

swin_tiny_224 = L(SwinTransformer)(
    pretrain_img_size=224,
    embed_dim=96,
    depths=[2, 2, 6, 2],
    num_heads=[3, 6, 12, 24],
    drop_path_rate=0.1,
    window_size=7,
    out_indices=[1, 2, 3],
)

swin_small_224 = L(SwinTransformer)(
    pretrain_img_size=224,
    embed_dim=96,
    depths=[2, 2, 18, 2],
    num_heads=[3, 6, 12, 24],
    drop_path_rate=0.2,
    window_size=7,
    out_indices=[1, 2, 3],
)

swin_base_384 = L(SwinTransformer)(
    pretrain_img_size=384,
    embed_dim=128,
    depths=[2, 2, 18, 2],
    num_heads=[4, 8, 16, 32],
    drop_path_rate=0.2,
    window_size=12,
    out_indices=[1, 2, 3],
)

swin_large_384 = L(SwinTransformer)(
    pretrain_img_size=384,
    embed_dim=192,
    depths=[2, 2, 18, 2],
    num_heads=[6, 12, 24, 48],
    drop_path_rate=0.2,
    window_size=12,
    out_indices=[1, 2, 3],
)

swin_large_224 = L(SwinTransformer)(
    pretrain_img_size=224,
    embed_dim=192,
    depths=[2, 2, 18, 2],
    num_heads=[6, 12, 24, 48],
    drop_path_rate=0.2,
    window_size=7,
    out_indices=[1, 2, 3],
)

# Of Swin-T and Swin-S.
shapes_of_tiny = {
    "p1": L(ShapeSpec)(channels=192),
    "p2": L(ShapeSpec)(channels=384),
    "p3": L(ShapeSpec)(channels=768),
}

shapes_of_base = {
    "p1": L(ShapeSpec)(channels=256),
    "p2": L(ShapeSpec)(channels=512),
    "p3": L(ShapeSpec)(channels=1024),
}

shapes_of_large = {
    "p1": L(ShapeSpec)(channels=384),
    "p2": L(ShapeSpec)(channels=768),
    "p3": L(ShapeSpec)(channels=1536),
}
