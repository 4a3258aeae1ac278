"""detrex's Conditional DETR on torchvision's ResNet, as its DC5 rows are."""

from ..detrex import on_torchvision_resnet

FORMAT = on_torchvision_resnet(
    "detrex_conditional_detr",
    "detrex's Conditional DETR on torchvision's ResNet",
    "ConditionalDETR",
    "query_embed.weight",
)
