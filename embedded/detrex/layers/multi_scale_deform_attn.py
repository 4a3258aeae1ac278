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
    """Weighted sum of values, sampled bilinearly at a few locations of every level (equation 3 of the paper).

    The CPU runs a sparse formulation, CUDA runs Triton kernels. Both have explicit gradients and save only inputs.
    Other devices, and CUDA without a working Triton, run `multi_scale_deformable_attn_pytorch`. The function supports
    autocast and `torch.compile(fullgraph=True)`. On CUDA atomic additions sum the gradient of `value`.

    Args:
        value: (B, Σ h·w, H, D), flattened and concatenated maps of the levels, H heads of D channels.
        spatial_shapes: (height, width) of each of the L levels, an int64 tensor (L, 2) or pairs of ints. Neither
            makes the host wait for the device.
        sampling_locations: (B, Lq, H, L, P, 2), (x, y) in [0, 1] from edge to edge of the map
            (`align_corners=False`); values outside the map are zero.
        attention_weights: (B, Lq, H, L, P); usually the sum over L and P is one.

    Returns:
        (B, Lq, H·D) in the dtype of `value`; sums are accumulated in at least float32.

    Raises:
        ValueError: the arguments have different numbers of levels, or the levels do not have Σ h·w cells. The second
            check needs the shapes on the host: it runs on the CPU, and for pairs of ints.
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
    """Compute `multi_scale_deformable_attn` with standard PyTorch operators and autograd, on any device.

    With `value_spatial_shapes` as a tensor on an accelerator, the host waits for the device; pairs of ints avoid this.
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
    """Return the module with `forward` and `backward` for a type of device; None if none works."""
    if device == "cpu":
        from . import _deform_attn_cpu

        return _deform_attn_cpu
    if device == "cuda":
        try:
            from . import _deform_attn_triton

            _deform_attn_triton.probe(device)
        except Exception as error:  # Triton, a C compiler or support of the GPU may be missing
            logging.getLogger(__name__).warning(
                "deformable attention runs in PyTorch, which is slower, because its Triton kernels do not work: %s",
                " ".join(str(error).split()),
            )
        else:
            return _deform_attn_triton
    return None


def _has_kernels(device: str) -> bool:
    return _kernels(device) is not None


# same as torch.compiler.assume_constant_result, without the import of the compiler, which takes seconds
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
    """Attention to a few sampling locations per feature level, which are predicted from the queries.

    Args:
        embed_dim: channels of queries and values; a multiple of `num_heads`.
        num_heads, num_levels, num_points: H, L and P; each head samples P locations of every level.
        img2col_step: unused, kept for configs.
        dropout: dropout of the output, before `identity` is added.
        batch_first: inputs and output are (B, N, C) instead of (N, B, C).
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
        """Initialise with uniform attention; head k samples 1, 2, … P cells away at angle 2πk/H, on squares."""
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
        """Attend from `query` to `value`, and add the result to `identity`.

        Args:
            query, query_pos, identity: (B, Lq, C), or (Lq, B, C) without `batch_first`. `identity` defaults
                to `query`; `query_pos` is added to the query.
            key: unused, as attention weights come from the query.
            value: (B, Lv, C) or (Lv, B, C), Lv = Σ h·w; defaults to `query`.
            key_padding_mask: (B, Lv) bool, True where the value is padding and reads as zero.
            reference_points: (B, Lq, L, 2) points (x, y), or (B, Lq, L, 4) boxes cxcywh, in [0, 1]. The unit of
                offsets is a cell of the level for points, and half the box size divided by P for boxes.
            spatial_shapes: (height, width) of the levels, an int64 tensor (L, 2) or pairs of ints.
            level_start_index: unused, as it follows from `spatial_shapes`.

        Returns:
            A tensor in the shape of `query`.

        Raises:
            ValueError: `reference_points` or `spatial_shapes` is missing, or has a wrong last dimension.
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
        """Return sampling locations (B, Lq, H, L, P, 2) in [0, 1], at least float32: float16 would round to pixels."""
        dtype = torch.promote_types(offsets.dtype, torch.float32)
        offsets = offsets.to(dtype).unflatten(-1, (self.num_heads, -1))
        reference = reference.to(dtype)[:, :, None]
        if reference.shape[-1] == 2:
            size = _shapes_tensor(spatial_shapes, offsets.device).flip(-1).to(dtype)
            locations = torch.addcdiv(self._per_sample(reference), offsets, self._per_sample(size))
            return locations.unflatten(-1, (self.num_levels, self.num_points, 2))
        if reference.shape[-1] == 4:
            center, size = map(self._per_sample, reference.split(2, dim=-1))
            locations = torch.addcmul(center, offsets, size, value=0.5 / self.num_points)
            return locations.unflatten(-1, (self.num_levels, self.num_points, 2))
        raise ValueError(f"reference_points must end in 2 (points) or 4 (boxes), got {reference.shape[-1]}")

    def _per_sample(self, pairs: Tensor) -> Tensor:
        """Repeat the pairs of each level (…, L, 2) for all its points: (…, L·P·2).

        Without the copy they would be broadcast over rows of two numbers, which takes a CPU eight times as long.
        """
        return pairs.unsqueeze(-2).expand(*pairs.shape[:-2], self.num_levels, self.num_points, 2).flatten(-3)

    def _weights(self, logits: Tensor) -> Tensor:
        """Return attention weights (B, Lq, H, L, P), a softmax over the samples of a head."""
        logits = logits.unflatten(-1, (self.num_heads, self.num_levels * self.num_points))
        return logits.softmax(-1).unflatten(-1, (self.num_levels, self.num_points))
