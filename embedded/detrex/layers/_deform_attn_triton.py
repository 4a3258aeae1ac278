"""Multi-scale deformable attention as Triton kernels, for CUDA devices.

The maps of an image fit into the L2 cache of a current GPU, so device memory is read little more than once: for
locations, weights and output. The kernels minimise transactions: they read a cell as one run of D channels, and the
data of a query is contiguous in the block of its program. Offsets have 32 bits unless a tensor is too large; sums are
float32 (float64 for float64 values).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 1024
"""Elements (rows × channels) per program; with 4 warps, two 16-byte reads per thread and cell."""


@triton.jit
def _cell_rows(x0, y0, dx: tl.constexpr, dy: tl.constexpr, width, height, first, step):
    """Return the row of `value` of one of the four cells at (x0, y0), and whether the cell is inside the map."""
    x, y = x0 + dx, y0 + dy
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return first + (y * width + x) * step, inside


@triton.jit
def _forward_kernel(
    value, shapes, locations, weights, output, bags, cells, queries,
    H: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Compute ROWS of the B·Lq·H bags (image, query, head): sums of L·P samples each."""
    bag = tl.program_id(0).to(INDEX) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    live = bag < bags
    first = (bag // (queries * H)) * (cells * H) + bag % H
    total = tl.zeros((ROWS, CHANNELS), dtype=SUM)
    for level in range(L):
        height = tl.load(shapes + 2 * level).to(tl.int32)
        width = tl.load(shapes + 2 * level + 1).to(tl.int32)
        for point in tl.static_range(P):
            sample = bag * (L * P) + level * P + point
            x = tl.load(locations + 2 * sample, mask=live, other=0).to(SUM) * width - 0.5
            y = tl.load(locations + 2 * sample + 1, mask=live, other=0).to(SUM) * height - 0.5
            weight = tl.load(weights + sample, mask=live, other=0).to(SUM)
            left, top = tl.floor(x), tl.floor(y)
            fx, fy = x - left, y - top
            x0, y0 = left.to(tl.int32), top.to(tl.int32)
            for corner in tl.static_range(4):
                row, inside = _cell_rows(x0, y0, corner % 2, corner // 2, width, height, first, H)
                share = weight * (fx if corner % 2 else 1 - fx) * (fy if corner // 2 else 1 - fy)
                inside = (inside & live)[:, None] & (channel < D)[None, :]
                read = tl.load(value + row[:, None] * D + channel[None, :], mask=inside, other=0)
                total += share[:, None] * read.to(SUM)
        first += height * width * H
    kept = live[:, None] & (channel < D)[None, :]
    tl.store(output + bag[:, None] * D + channel[None, :], total.to(output.dtype.element_ty), mask=kept)


@triton.jit
def _backward_kernel(
    grad_output, value, shapes, locations, weights, grad_value, grad_locations, grad_weights,
    samples, cells, queries,
    H: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of ROWS of the B·Lq·H·L·P samples, which are independent of each other."""
    sample = tl.program_id(0).to(INDEX) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    live = sample < samples
    kept = live[:, None] & (channel < D)[None, :]
    bag = sample // (L * P)
    level = (sample // P) % L
    first = (bag // (queries * H)) * (cells * H) + bag % H
    height = tl.zeros((ROWS,), dtype=tl.int32)
    width = tl.zeros((ROWS,), dtype=tl.int32)
    for k in tl.static_range(L):
        level_height = tl.load(shapes + 2 * k).to(tl.int32)
        level_width = tl.load(shapes + 2 * k + 1).to(tl.int32)
        height = tl.where(level == k, level_height, height)
        width = tl.where(level == k, level_width, width)
        first += tl.where(level > k, level_height * level_width * H, 0)

    x = tl.load(locations + 2 * sample, mask=live, other=0).to(SUM) * width - 0.5
    y = tl.load(locations + 2 * sample + 1, mask=live, other=0).to(SUM) * height - 0.5
    weight = tl.load(weights + sample, mask=live, other=0).to(SUM)
    left, top = tl.floor(x), tl.floor(y)
    fx, fy = x - left, y - top
    x0, y0 = left.to(tl.int32), top.to(tl.int32)
    grad = tl.load(grad_output + bag[:, None] * D + channel[None, :], mask=kept, other=0).to(SUM)

    sampled = tl.zeros((ROWS,), dtype=SUM)
    slope_x = tl.zeros((ROWS,), dtype=SUM)
    slope_y = tl.zeros((ROWS,), dtype=SUM)
    for corner in tl.static_range(4):
        row, inside = _cell_rows(x0, y0, corner % 2, corner // 2, width, height, first, H)
        share_x = fx if corner % 2 else 1 - fx
        share_y = fy if corner // 2 else 1 - fy
        inside = inside[:, None] & kept
        where = row[:, None] * D + channel[None, :]
        read = tl.load(value + where, mask=inside, other=0).to(SUM)
        product = tl.sum(read * grad, axis=1)
        sampled += share_x * share_y * product
        slope_x += (share_y if corner % 2 else -share_y) * product
        slope_y += (share_x if corner // 2 else -share_x) * product
        share = weight * share_x * share_y
        tl.atomic_add(grad_value + where, share[:, None] * grad, mask=inside, sem="relaxed")
    tl.store(grad_weights + sample, sampled.to(grad_weights.dtype.element_ty), mask=live)
    kind = grad_locations.dtype.element_ty
    tl.store(grad_locations + 2 * sample, (slope_x * weight * width).to(kind), mask=live)
    tl.store(grad_locations + 2 * sample + 1, (slope_y * weight * height).to(kind), mask=live)


def probe(device: str) -> None:
    """Compile and run the forward kernel on minimal input; raises any error of Triton."""
    value = torch.zeros(1, 1, 1, 1, device=device)
    shapes = torch.ones(1, 2, dtype=torch.int64, device=device)
    forward(value, shapes, value.new_zeros(1, 1, 1, 1, 1, 2), value.new_zeros(1, 1, 1, 1, 1))


def _constants(value: Tensor, locations: Tensor, outputs: int) -> dict:
    *_, heads, channels = value.shape
    padded = triton.next_power_of_2(channels)
    wide = max(value.numel(), locations.numel(), outputs) >= 2**31
    return {
        "H": heads,
        "D": channels,
        "L": locations.shape[3],
        "P": locations.shape[4],
        "ROWS": max(1, TILE // padded),
        "CHANNELS": padded,
        "SUM": tl.float64 if value.dtype == torch.float64 else tl.float32,
        "INDEX": tl.int64 if wide else tl.int32,
    }


def forward(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """See `multi_scale_deformable_attn`; `shapes` is on the device of `value`."""
    value, shapes, locations, weights = (x.contiguous() for x in (value, shapes, locations, weights))
    batch, cells, heads, channels = value.shape
    queries = locations.shape[1]
    output = value.new_empty(batch, queries, heads * channels)
    bags = batch * queries * heads
    if bags:
        constants = _constants(value, locations, output.numel())
        with torch.cuda.device_of(value):
            grid = (triton.cdiv(bags, constants["ROWS"]),)
            _forward_kernel[grid](value, shapes, locations, weights, output, bags, cells, queries, **constants)
    return output


def backward(
    grad_output: Tensor, value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and weights. Atomics sum the first one, in no fixed order."""
    inputs = (grad_output, value, shapes, locations, weights)
    grad_output, value, shapes, locations, weights = (x.contiguous() for x in inputs)
    _, cells, _, _ = value.shape
    grad_value = torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    samples = weights.numel()
    if samples:
        constants = _constants(value, locations, grad_output.numel())
        with torch.cuda.device_of(value):
            grid = (triton.cdiv(samples, constants["ROWS"]),)
            _backward_kernel[grid](
                grad_output, value, shapes, locations, weights, grad_value, grad_locations, grad_weights,
                samples, cells, locations.shape[1], **constants,
            )  # fmt: skip
    return grad_value.to(value.dtype), grad_locations, grad_weights
