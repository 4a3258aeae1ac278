"""Multi-scale deformable attention (Deformable DETR, Zhu et al., ICLR 2021, section 4.1)."""

import logging
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._deform_attn_checks import check_cells

SpatialShapes = Tensor | Sequence[tuple[int, int]]


def multi_scale_deformable_attn(
    value: Tensor, spatial_shapes: SpatialShapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Weighted sum of values read bilinearly at a few locations of every level: equation 3 of the paper.

    Runs a sparse formulation on the CPU and Triton kernels on CUDA, both with gradients written out and nothing
    saved but the arguments; elsewhere, and on CUDA without a working Triton, the plain formula below. Safe under
    autocast and `torch.compile(fullgraph=True)`. On CUDA the gradient of `value` is summed by atomic additions.

    Args:
        value: (B, Σ h·w, H, D), the levels' maps flattened row by row and joined, in H heads of D channels.
        spatial_shapes: (height, width) of each of the L levels, an int64 tensor (L, 2) or pairs of ints. Neither
            makes the host wait for the device.
        sampling_locations: (B, Lq, H, L, P, 2), (x, y) with [0, 1] spanning the map from outer edge to outer
            edge (`align_corners=False`); outside of the map the value is zero.
        attention_weights: (B, Lq, H, L, P), usually summing to one over L and P.

    Returns:
        (B, Lq, H·D) in the dtype of `value`; sums are accumulated in at least float32.

    Raises:
        ValueError: the number of levels differs between arguments, or the levels do not add up to Σ h·w (checked
            where the shapes are at hand: on the CPU, and for pairs of ints).
    """
    if len(spatial_shapes) != sampling_locations.shape[3]:
        raise ValueError(
            f"spatial_shapes has {len(spatial_shapes)} levels, sampling_locations {sampling_locations.shape[3]}"
        )
    if not _has_kernels(value.device.type):
        return multi_scale_deformable_attn_pytorch(value, spatial_shapes, sampling_locations, attention_weights)
    if not isinstance(spatial_shapes, Tensor):
        check_cells(value, spatial_shapes)
    shapes = _shapes_tensor(spatial_shapes, value.device)
    return _deform_attn(value, shapes, sampling_locations, attention_weights)


def multi_scale_deformable_attn_pytorch(
    value: Tensor, value_spatial_shapes: SpatialShapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The same in plain PyTorch, for any device and with autograd throughout.

    A tensor of shapes that lies on an accelerator is read by the host, which waits for it; pairs of ints are not.
    """
    batch, _, heads, channels = value.shape
    sizes = value_spatial_shapes
    sizes = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    check_cells(value, sizes)
    dtype = torch.promote_types(value.dtype, torch.float32)
    grid = (2 * sampling_locations.to(dtype) - 1).transpose(1, 2)
    weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1)
    output = 0
    for level, level_value in enumerate(value.to(dtype).split([h * w for h, w in sizes], dim=1)):
        sampled = F.grid_sample(
            level_value.permute(0, 2, 3, 1).reshape(batch * heads, channels, *sizes[level]),
            grid[:, :, :, level].flatten(0, 1),
            align_corners=False,
        )
        output = output + (sampled * weights[:, None, :, level]).sum(-1)
    return output.view(batch, heads * channels, -1).transpose(1, 2).to(value.dtype)


@cache
def _kernels(device: str) -> ModuleType | None:
    """The module with `forward` and `backward` for a type of device, if there is one that works."""
    if device == "cpu":
        from . import _deform_attn_cpu

        return _deform_attn_cpu
    if device == "cuda":
        try:
            from . import _deform_attn_triton

            _deform_attn_triton.probe(device)
        except Exception as error:  # whatever Triton lacks here (itself, a C compiler, the GPU's support)
            logging.getLogger(__name__).warning(
                "deformable attention runs in plain PyTorch, its Triton kernels do not work here: %s",
                " ".join(str(error).split()),
            )
        else:
            return _deform_attn_triton
    return None


def _has_kernels(device: str) -> bool:
    return _kernels(device) is not None


# what torch.compiler.assume_constant_result does, without importing the compiler (seconds) with this module
_has_kernels._dynamo_marked_constant = True


def _forward(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return _kernels(value.device.type).forward(value, shapes, locations, weights)


def _backward(
    grad_output: Tensor, value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _kernels(value.device.type).backward(grad_output, value, shapes, locations, weights)


def _save_inputs(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grad_value, grad_locations, grad_weights = _deform_attn_backward(grad_output, *ctx.saved_tensors)
    return grad_value, None, grad_locations, grad_weights


if hasattr(torch.library, "custom_op"):
    _ARGUMENTS = "Tensor value, Tensor shapes, Tensor locations, Tensor weights"
    _deform_attn = torch.library.custom_op(
        "detrex::deform_attn", _forward, mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor"
    )
    _deform_attn_backward = torch.library.custom_op(
        "detrex::deform_attn_backward",
        _backward,
        mutates_args=(),
        schema=f"(Tensor grad_output, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    )

    @_deform_attn.register_fake
    def _(value, shapes, locations, weights):
        return value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])

    @_deform_attn_backward.register_fake
    def _(grad_output, value, shapes, locations, weights):
        return tuple(x.new_empty(x.shape) for x in (value, locations, weights))

    _deform_attn.register_autograd(_differentiate, setup_context=_save_inputs)
else:  # torch < 2.4

    class _DeformAttn(torch.autograd.Function):
        forward = staticmethod(_forward)
        setup_context = staticmethod(_save_inputs)
        backward = staticmethod(torch.autograd.function.once_differentiable(_differentiate))

    _deform_attn, _deform_attn_backward = _DeformAttn.apply, _backward


@lru_cache(maxsize=256)
def _shapes_on(device: torch.device, sizes: tuple[tuple[int, int], ...]) -> Tensor:
    return torch.tensor(sizes, device=device)


def _shapes_tensor(spatial_shapes: SpatialShapes, device: torch.device) -> Tensor:
    if isinstance(spatial_shapes, Tensor):
        return spatial_shapes.to(device)
    return _shapes_on(device, tuple((int(h), int(w)) for h, w in spatial_shapes))


class MultiScaleDeformableAttention(nn.Module):
    """Attention whose queries choose the few locations of each feature level that they read.

    Args:
        embed_dim: channels of queries and values; a multiple of `num_heads`.
        num_heads, num_levels, num_points: H, L and P; each head reads P locations of every level.
        img2col_step: kept for configs written for the CUDA operator; without effect.
        dropout: of the output, before `identity` is added.
        batch_first: (B, N, C) inputs and output instead of (N, B, C).
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        img2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim ({embed_dim}) must be divisible by num_heads ({num_heads})")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.batch_first = batch_first
        self.dropout = nn.Dropout(dropout)
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, samples * 2)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.init_weights()

    def init_weights(self) -> None:
        """Uniform attention; head k looks 1, 2, … P cells away at angle 2πk/H, on squares around it."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1)
        offsets = direction[:, None, None] * distance[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: SpatialShapes | None = None,
        level_start_index: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Attends from `query` to `value` and adds the result to `identity`.

        Args:
            query, query_pos, identity: (B, Lq, C), or (Lq, B, C) without `batch_first`. `identity` defaults
                to `query`; `query_pos` is added to the query.
            key: unused: attention weights come from the query alone.
            value: (B, Lv, C) or (Lv, B, C), Lv = Σ h·w; defaults to `query`.
            key_padding_mask: (B, Lv) bool, True where the value is padding and reads as zero.
            reference_points: (B, Lq, L, 2) points (x, y), or (B, Lq, L, 4) boxes cxcywh, in [0, 1]. Offsets
                count in cells of the level for points, in half box sizes over P for boxes.
            spatial_shapes: (height, width) of the levels, an int64 tensor (L, 2) or pairs of ints.
            level_start_index: unused: it follows from `spatial_shapes`.

        Returns:
            a tensor shaped like `query`.

        Raises:
            ValueError: `reference_points` or `spatial_shapes` missing, or of a wrong last dimension.
        """
        if reference_points is None or spatial_shapes is None:
            raise ValueError("deformable attention needs reference_points and spatial_shapes")
        identity = query if identity is None else identity
        value = query if value is None else value
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)

        value = self.value_proj(value)  # a new tensor, so padding can be zeroed in place
        if key_padding_mask is not None:
            value = value.masked_fill_(key_padding_mask[..., None], 0)
        output = multi_scale_deformable_attn(
            value.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            self._locations(self.sampling_offsets(query), reference_points, spatial_shapes),
            self._weights(self.attention_weights(query)),
        )
        output = self.output_proj(output)
        if not self.batch_first:
            output = output.transpose(0, 1)
        return identity + self.dropout(output)

    def _locations(self, offsets: Tensor, reference: Tensor, spatial_shapes: SpatialShapes) -> Tensor:
        """(B, Lq, H, L, P, 2) in [0, 1], float32 at least: half precision would round to whole pixels."""
        dtype = torch.promote_types(offsets.dtype, torch.float32)
        offsets = offsets.to(dtype).unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
        reference = reference.to(dtype)[:, :, None, :, None]
        if reference.shape[-1] == 2:
            size = _shapes_tensor(spatial_shapes, offsets.device).flip(-1)[:, None].to(dtype)
            return torch.addcdiv(reference, offsets, size)
        if reference.shape[-1] == 4:
            center, size = reference.split(2, dim=-1)
            return torch.addcmul(center, offsets, size, value=0.5 / self.num_points)
        raise ValueError(f"reference_points must end in 2 (points) or 4 (boxes), got {reference.shape[-1]}")

    def _weights(self, logits: Tensor) -> Tensor:
        """(B, Lq, H, L, P), softmax over the samples of a head."""
        logits = logits.unflatten(-1, (self.num_heads, self.num_levels * self.num_points))
        return logits.softmax(-1).unflatten(-1, (self.num_levels, self.num_points))
