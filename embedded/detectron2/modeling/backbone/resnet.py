"""ResNet (He et al., CVPR 2016) under detectron2's names: `stem`, `res2` to `res5`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from .backbone import Backbone

# Blocks in res2..res5, by depth.
_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: str, **kwargs) -> Conv2d:
    """A convolution without bias, followed by `norm` and initialised for a ReLU after it (He et al., ICCV 2015)."""
    kwargs.setdefault("padding", kernel_size // 2)
    conv = Conv2d(in_channels, out_channels, kernel_size, bias=False, norm=get_norm(norm, out_channels), **kwargs)
    c2_msra_fill(conv)
    return conv


class BasicStem(CNNBlockBase):
    """A 7×7 convolution and a max pooling, each of stride 2."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: str = "BN"):
        super().__init__(in_channels, out_channels, stride=4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, ⌈H/4⌉, ⌈W/4⌉)."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class _ResidualBlock(CNNBlockBase):
    """The shortcut and the sum that both kinds of block share; subclasses add convolutions `conv1`, `conv2`, …"""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str, num_convs: int):
        super().__init__(in_channels, out_channels, stride)
        self._conv_names = [f"conv{i + 1}" for i in range(num_convs)]
        # Registered first: state dicts list the shortcut before the convolutions.
        self.shortcut = (
            _conv(in_channels, out_channels, 1, norm, stride=stride) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        out = x
        for name in self._conv_names[:-1]:
            out = F.relu_(getattr(self, name)(out))
        out = getattr(self, self._conv_names[-1])(out)
        return F.relu_(out + (x if self.shortcut is None else self.shortcut(x)))


class BasicBlock(_ResidualBlock):
    """Two 3×3 convolutions: the block of ResNet-18 and -34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: str = "BN"):
        super().__init__(in_channels, out_channels, stride, norm, num_convs=2)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv(out_channels, out_channels, 3, norm)


class BottleneckBlock(_ResidualBlock):
    """1×1, 3×3 and 1×1 convolutions: the block of ResNet-50 and deeper.

    Args:
        in_channels, out_channels: width of input and output.
        bottleneck_channels: width of the 3×3 convolution.
        stride: of the block, taken by the 3×3 convolution.
        num_groups, dilation: of the 3×3 convolution.
        norm: as in `get_norm`.
        stride_in_1x1: the first 1×1 convolution takes the stride, as in the MSRA weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: str = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ):
        super().__init__(in_channels, out_channels, stride, norm, num_convs=3)
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm, stride=first)
        self.conv2 = _conv(
            bottleneck_channels,
            bottleneck_channels,
            3,
            norm,
            stride=second,
            padding=dilation,
            dilation=dilation,
            groups=num_groups,
        )
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm)


class ResNet(Backbone):
    """Stem and stages, whose outputs are `stem`, `res2`, `res3`, …, and a classifier's `linear`.

    Args:
        stem: the first module.
        stages: a list of blocks for each stage, as `make_stage` returns it.
        num_classes: add a classifier over the mean of the last feature map.
        out_features: names of the outputs, by default the last one. Stages beyond the last of them are not built.
        freeze_at: freeze the stem (1), also res2 (2), and so on; 0 freezes nothing.
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ):
        super().__init__()
        names = [f"res{i}" for i in range(2, 2 + len(stages))]
        last = "linear" if num_classes is not None else ("stem", *names)[-1]
        self._out_features = [last] if out_features is None else list(out_features)
        known = ["stem", *names] + ["linear"] * (num_classes is not None)
        unknown = [name for name in self._out_features if name not in known]
        if unknown or not self._out_features:
            raise ValueError(f"ResNet: out_features is {self._out_features}; choose from {', '.join(known)}")

        depth = max(known.index(name) for name in self._out_features)
        self.num_classes = num_classes
        self.stem = stem
        self.stage_names = names[:depth]
        shape = ShapeSpec(channels=stem.out_channels, stride=stem.stride)
        self._shapes = {"stem": shape}
        for name, blocks in zip(self.stage_names, stages, strict=False):
            stride = shape.stride
            for block in blocks:
                stride *= block.stride
            shape = ShapeSpec(channels=blocks[-1].out_channels, stride=stride)
            self.add_module(name, nn.Sequential(*blocks))
            self._shapes[name] = shape
        if num_classes is not None:
            self.linear = nn.Linear(shape.channels, num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)
            self._shapes["linear"] = ShapeSpec(channels=num_classes)
        self.freeze(freeze_at)

    @property
    def stages(self) -> list[nn.Sequential]:
        """The stages that were built, in order."""
        return [getattr(self, name) for name in self.stage_names]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to the `out_features` by name."""
        if x.dim() != 4:
            raise ValueError(f"ResNet takes images (B, C, H, W), not a tensor of shape {tuple(x.shape)}")
        if x.device.type == "cpu":  # where convolutions are a third faster on it
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        outputs = {"stem": x}
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            x = stage(x)
            outputs[name] = x
        if "linear" in self._out_features:
            outputs["linear"] = self.linear(x.mean((2, 3)))
        return {name: outputs[name] for name in self._out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each output."""
        return {name: self._shapes[name] for name in self._out_features}

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Freeze the first `freeze_at` of stem, res2, res3, …; see `CNNBlockBase.freeze`. Returns self."""
        frozen = [self.stem, *(block for stage in self.stages[: max(freeze_at - 1, 0)] for block in stage)]
        for block in frozen if freeze_at >= 1 else ():
            block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase], num_blocks: int, *, in_channels: int, out_channels: int, **kwargs
    ) -> list[CNNBlockBase]:
        """`num_blocks` blocks, the first of which widens `in_channels` to `out_channels`.

        Other arguments go to every block; a list under the name `<argument>_per_block` has one value for each.
        """
        blocks = []
        for i in range(num_blocks):
            own = {}
            for name, value in kwargs.items():
                if name.endswith("_per_block"):
                    if len(value) != num_blocks:
                        raise ValueError(f"make_stage: {name} has {len(value)} values for {num_blocks} blocks")
                    own[name.removesuffix("_per_block")] = value[i]
                else:
                    own[name] = value
            blocks.append(block_class(in_channels if i == 0 else out_channels, out_channels, **own))
        return blocks

    @staticmethod
    def make_default_stages(
        depth: int, block_class: type[CNNBlockBase] | None = None, **kwargs
    ) -> list[list[CNNBlockBase]]:
        """res2 to res5 of the ResNet with `depth` layers (18, 34, 50, 101 or 152) behind a stem of 64 channels.

        Args:
            depth: 18 and 34 have basic blocks, the others bottlenecks.
            block_class: another block, whose signature is one of the two's.
            **kwargs: passed to every block.
        """
        if depth not in _DEPTHS:
            raise ValueError(f"ResNet-{depth} is not among the depths {', '.join(map(str, _DEPTHS))}")
        if block_class is None:
            block_class = BasicBlock if depth < 50 else BottleneckBlock
        widths = (64, 128, 256, 512) if depth < 50 else (256, 512, 1024, 2048)
        stages, in_channels = [], 64
        for num_blocks, width, stride in zip(_DEPTHS[depth], widths, (1, 2, 2, 2), strict=True):
            bottleneck = {"bottleneck_channels": width // 4} if depth >= 50 else {}
            stages.append(
                ResNet.make_stage(
                    block_class,
                    num_blocks,
                    in_channels=in_channels,
                    out_channels=width,
                    stride_per_block=[stride] + [1] * (num_blocks - 1),
                    **bottleneck,
                    **kwargs,
                )
            )
            in_channels = width
        return stages
