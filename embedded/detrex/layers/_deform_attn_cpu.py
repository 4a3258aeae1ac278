"""Multi-scale deformable attention on the CPU, a few heads of one image at a time.

Memory traffic is what costs here, so no sampled value is ever stored. To read the four cells around every
sampling point with bilinear weights is to multiply by a sparse matrix, (queries × cells) with 4·L·P entries a row.
`embedding_bag` multiplies the values by it, SciPy multiplies the output's gradient by its transpose (which gives
the gradient of the values), and `sampled_addmm` takes the dot products of output gradient and value at its
entries, all that the gradients of locations and weights need. Heads are taken in blocks that stay in the cache,
each by a single thread: threads that met after every one of the many small steps would mostly wait for each other.

Around its map every level gets a frame of zero cells, so that points outside need no masks.
"""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.sparse import csc_array
from torch import Tensor

from .multi_scale_deform_attn import check_cells

FRAME = 2
"""Zero cells on each side: points beyond one cell outside are moved where all their four cells are zero."""

BLOCK_SAMPLES = 1 << 17
"""Sampling points in a block of heads, at most: few enough for the cache, many enough to hide what calls cost."""

with warnings.catch_warnings():
    # the first CSR tensor of a process warns that their support is in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), device="cpu")


Block = tuple[int, slice, slice]
"""Index of a block, an image and a range of heads, in (B, N, H, …) tensors."""


@dataclass(frozen=True)
class _Frames:
    """Where the cells of each level lie in a block's framed values, (heads, length, D).

    Rows of a level are width + FRAME cells apart: the frame to the right of a row is the one left of the next.
    """

    sizes: list[tuple[int, int]]
    starts: list[int]
    length: int

    @classmethod
    def around(cls, sizes: list[tuple[int, int]]) -> "_Frames":
        starts, length = [], 0
        for height, width in sizes:
            stride = width + FRAME
            starts.append(length + FRAME * stride + FRAME)
            length += (height + 2 * FRAME) * stride + FRAME
        return cls(sizes, starts, length)

    def pairs(self, framed: Tensor, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Level by level, views (heads, h, w, D) of `framed` without its frame and of `values` (Σ h·w, heads, D)."""
        levels = values.transpose(0, 1).split([h * w for h, w in self.sizes], dim=1)
        for (height, width), start, level in zip(self.sizes, self.starts, levels, strict=True):
            rows = framed[:, start : start + height * (width + FRAME)].unflatten(1, (height, width + FRAME))
            yield rows[:, :, :width], level.unflatten(1, (height, width))


class _Blocks:
    """The blocks of heads of a call, and the constants they share, each written out per sampling point.

    Written out because rows as short as L·P make broadcasting slow. `rows` are (query, head) pairs.
    """

    def __init__(self, value: Tensor, shapes: Tensor, locations: Tensor):
        sizes = [(height, width) for height, width in shapes.tolist()]
        check_cells(value, sizes)
        self.images, self.queries, self.heads, levels, points, _ = locations.shape
        self.dtype = torch.promote_types(value.dtype, torch.float32)
        self.frames = _Frames.around(sizes)
        samples = levels * points
        even = self.images * self.heads // torch.get_num_threads()
        most = max(1, min(even, BLOCK_SAMPLES // max(1, self.queries * samples)))
        self.width = next(n for n in range(min(most, self.heads), 0, -1) if self.heads % n == 0)
        self.rows = self.queries * self.width
        self.framed_shape = (self.width, self.frames.length, value.shape[-1])

        def per_point(levels: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
            constant = torch.tensor(levels, dtype=dtype)[:, None].expand(self.queries, self.width, -1, points)
            return constant.reshape(self.rows, samples)

        heights, widths = zip(*sizes, strict=True)
        self.size = torch.stack([per_point(widths, self.dtype), per_point(heights, self.dtype)])
        strides = [width + FRAME for width in widths]
        self.stride = per_point(strides)
        head = torch.arange(self.width, dtype=torch.int32).repeat(self.queries) * self.frames.length
        self.start = per_point(self.frames.starts) + head[:, None]
        self.corners = torch.tensor([[0] * levels, [1] * levels, strides, [s + 1 for s in strides]])
        self.corners = self.corners.to(torch.int32).repeat_interleave(points, dim=-1)
        self.bags = torch.arange(self.rows + 1, dtype=torch.int32) * self.corners.numel()

    def run(self, work: Callable[[Block], None]) -> None:
        """Calls `work` with the index of every block, in as many threads as PyTorch uses."""
        blocks = [
            (image, slice(None), slice(head, head + self.width))
            for image in range(self.images)
            for head in range(0, self.heads, self.width)
        ]
        work = torch.no_grad()(work)
        threads = torch.get_num_threads()
        if threads == 1:
            for block in blocks:
                work(block)
            return
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for _ in pool.map(work, blocks):
                    pass
        finally:
            # the number is each thread's own, but new threads start with the last one that any of them set
            torch.set_num_threads(threads)

    def frame(self, values: Tensor) -> Tensor:
        """`values` (Σ h·w, heads, D) with their frames: (heads · length, D)."""
        framed = torch.zeros(self.framed_shape, dtype=self.dtype)
        for inside, level in self.frames.pairs(framed, values):
            inside.copy_(level)
        return framed.flatten(0, 1)

    def unframe(self, framed: Tensor, values: Tensor) -> None:
        """The way back, from `framed` (heads · length, D) into `values`."""
        for inside, level in self.frames.pairs(framed.view(self.framed_shape), values):
            level.copy_(inside)

    def samples(self, locations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(Lq, heads, L, P, 2) -> the cells (rows, 4, L·P), int32, and the fractions (rows, L·P) in x and y.

        The four cells are the ones left above, right above, left below and right below of the point.
        """
        pixel = torch.empty_like(self.size)
        pixel.view(2, *locations.shape[:4]).copy_(locations.permute(4, 0, 1, 2, 3))
        pixel.mul_(self.size).sub_(0.5)
        floor = pixel.floor()
        fraction = pixel.sub_(floor)
        # the lower bound as an integer, so that NaN becomes a cell too
        x, y = floor.minimum(self.size).int().clamp_(min=-FRAME)
        cell = y.mul_(self.stride).add_(x).add_(self.start)
        return cell[:, None] + self.corners, fraction[0], fraction[1]


def _bilinear(weights: Tensor, fx: Tensor, fy: Tensor) -> Tensor:
    """Shares out `weights` (rows, L·P) among the four cells: (rows, 4, L·P)."""
    below = weights * fy
    above = weights - below
    above_right = above * fx
    below_right = below * fx
    return torch.stack([above - above_right, above_right, below - below_right, below_right], dim=1)


def forward(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """See `multi_scale_deformable_attn`."""
    blocks = _Blocks(value, shapes, locations)
    output = value.new_empty(*locations.shape[:3], value.shape[-1])

    def work(block: Block) -> None:
        cells, fx, fy = blocks.samples(locations[block])
        shares = _bilinear(weights[block].to(blocks.dtype).reshape_as(fx), fx, fy)
        output[block] = F.embedding_bag(
            cells.flatten(),
            blocks.frame(value[block]),
            blocks.bags,
            mode="sum",
            per_sample_weights=shares.flatten(),
            include_last_offset=True,
        ).unflatten(0, (-1, blocks.width))

    blocks.run(work)
    return output.flatten(2)


def backward(
    grad_output: Tensor, value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights."""
    blocks = _Blocks(value, shapes, locations)
    grad_output = grad_output.unflatten(2, value.shape[2:])
    grad_value, grad_locations, grad_weights = (x.new_empty(x.shape) for x in (value, locations, weights))

    def work(block: Block) -> None:
        framed = blocks.frame(value[block])
        grad = grad_output[block].to(blocks.dtype).flatten(0, 1).contiguous()
        cells, fx, fy = blocks.samples(locations[block])
        weight = weights[block].to(blocks.dtype).reshape_as(fx)

        indices, shape = cells.flatten(), (len(framed), blocks.rows)
        entries = _bilinear(weight, fx, fy).flatten()
        transposed = csc_array((entries.numpy(), indices.numpy(), blocks.bags.numpy()), shape=shape)
        blocks.unframe(torch.from_numpy(transposed @ grad.numpy()), grad_value[block])

        products = torch.sparse_csr_tensor(blocks.bags, indices, entries.zero_(), shape[::-1])
        torch.sparse.sampled_addmm(products, grad, framed.t(), beta=0.0, out=products)
        corners = products.values().view_as(cells).transpose(0, 1).contiguous()
        left_above, right_above, left_below, right_below = corners
        above = torch.lerp(left_above, right_above, fx)
        below = torch.lerp(left_below, right_below, fx)
        sampled = torch.lerp(above, below, fy)
        slope_x = torch.lerp(right_above - left_above, right_below - left_below, fy)
        slopes = torch.stack([slope_x, below - above]).mul_(weight).mul_(blocks.size)
        grad_weights[block] = sampled.view_as(weights[block])
        grad_locations[block] = slopes.movedim(0, -1).reshape(locations[block].shape)

    blocks.run(work)
    return grad_value, grad_locations, grad_weights
