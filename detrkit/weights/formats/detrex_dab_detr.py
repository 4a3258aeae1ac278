"""detrex's DAB-DETR on torchvision's ResNet, as its DC5 rows are."""

from ..detrex import on_torchvision_resnet

FORMAT = on_torchvision_resnet(
    "detrex_dab_detr", "detrex's DAB-DETR on torchvision's ResNet", "DABDETR", "anchor_box_embed.weight"
)
