"""ResNet as detrex's configs build it: one function for all stages of a depth."""

from collections.abc import Sequence

from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone import BasicStem, BottleneckBlock, ResNet

__all__ = ["BasicStem", "ResNet", "make_stage"]

# Blocks in res2..res5 of the depths that have bottlenecks.
_BOTTLENECKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def make_stage(
    depth: int = 50,
    norm: str = "FrozenBN",
    num_groups: int = 1,
    width_per_group: int = 64,
    in_channels: int = 64,
    out_channels: int = 256,
    stride_in_1x1: bool = False,
    res5_dilation: int = 1,
    deform_on_per_stage: Sequence[bool] = (False, False, False, False),
    deform_modulated: bool = False,
    deform_num_groups: int = 1,
) -> list[list[CNNBlockBase]]:
    """res2 to res5 of a ResNet, for `ResNet(stages=…)`.

    Args:
        depth: 18, 34, 50, 101 or 152.
        norm: as in `detectron2.layers.get_norm`.
        num_groups, width_per_group: of the 3×3 convolutions, for ResNeXt.
        in_channels: width of the stem.
        out_channels: width of res2, which doubles from stage to stage; 64 for the depths 18 and 34.
        stride_in_1x1: see `BottleneckBlock`.
        res5_dilation: 2 gives the DC5 variant: res5 keeps the resolution of res4, and all of its 3×3 convolutions are
            dilated, the first one's too.
        deform_on_per_stage, deform_modulated, deform_num_groups: deformable convolutions, which are not offered.

    Raises:
        ValueError: an unknown depth, deformable convolutions, or options that ResNet-18 and -34 do not have.
    """
    if any(deform_on_per_stage):
        raise ValueError("deformable convolutions are not offered; leave deform_on_per_stage all False")
    if depth in (18, 34):
        if (num_groups, width_per_group, in_channels, out_channels, res5_dilation) != (1, 64, 64, 64, 1):
            raise ValueError(
                f"ResNet-{depth} has basic blocks of 64 channels: set in_channels=out_channels=64 and leave "
                "num_groups, width_per_group and res5_dilation at their defaults"
            )
        return ResNet.make_default_stages(depth, norm=norm)
    if depth not in _BOTTLENECKS:
        raise ValueError(f"ResNet-{depth} is not among the depths 18, 34, {', '.join(map(str, _BOTTLENECKS))}")

    stages = []
    bottleneck_channels = num_groups * width_per_group
    for stage, num_blocks in enumerate(_BOTTLENECKS[depth], start=2):
        dilation = res5_dilation if stage == 5 else 1
        stride = 1 if stage == 2 or dilation > 1 else 2
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                num_blocks,
                in_channels=in_channels,
                out_channels=out_channels,
                bottleneck_channels=bottleneck_channels,
                stride_per_block=[stride] + [1] * (num_blocks - 1),
                num_groups=num_groups,
                norm=norm,
                stride_in_1x1=stride_in_1x1,
                dilation=dilation,
            )
        )
        in_channels, out_channels, bottleneck_channels = out_channels, 2 * out_channels, 2 * bottleneck_channels
    return stages
