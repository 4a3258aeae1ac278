"""Multi-scale deformable attention on the CPU, block by block: a few heads of one image, or several small images.

Memory traffic limits the speed, so sampled values are never stored. Bilinear sampling is a product with a sparse
matrix, (queries × cells) with 4·L·P entries per row:

* forward: `embedding_bag` multiplies the values by the matrix;
* gradient of the values: SciPy multiplies the output's gradient by the transposed matrix;
* gradients of locations and weights: `sampled_addmm` computes the dot products of output gradient and values at the
  entries of the matrix.

A block fits into the cache. A single thread computes it: threads that synchronise after each small step mostly wait.

Every level gets a frame of zero cells around its map, so that points outside need no masks.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from scipy.sparse import csc_array
from torch import Tensor

from ._deform_attn_checks import check_cells

FRAME = 2
"""Zero cells on each side. Points more than one cell outside are moved to a place where all four cells are zero."""

BLOCK_SAMPLES = 1 << 17
"""Largest number of sampling points in a block: fits into the cache, and hides the overhead of calls."""

with warnings.catch_warnings():
    # PyTorch warns about beta support at the first CSR tensor of a process
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), device="cpu")


Block = tuple[slice, slice, slice]
"""Index of a block in tensors (B, N, H, …): a range of images and a range of heads."""


@dataclass(frozen=True)
class _Frames:
    """Positions of each level's cells in a block's framed values, (heads, length, D).

    Rows of a level are width + FRAME cells apart: a row's right frame is also the next row's left frame.
    """

    sizes: Sequence[tuple[int, int]]
    starts: list[int]
    length: int

    @classmethod
    def around(cls, sizes: Sequence[tuple[int, int]]) -> "_Frames":
        starts, length = [], 0
        for height, width in sizes:
            stride = width + FRAME
            starts.append(length + FRAME * stride + FRAME)
            length += (height + 2 * FRAME) * stride + FRAME
        return cls(sizes, starts, length)

    def pairs(self, framed: Tensor, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield views (images, heads, h, w, D) of each level: of `framed` without its frame, and of `values`.

        Args:
            framed: (images · heads, length, D).
            values: (images, Σ h·w, heads, D).
        """
        framed = framed.unflatten(0, (-1, values.shape[2]))
        levels = values.transpose(1, 2).split([h * w for h, w in self.sizes], dim=2)
        for (height, width), start, level in zip(self.sizes, self.starts, levels, strict=True):
            rows = framed[:, :, start : start + height * (width + FRAME)].unflatten(2, (height, width + FRAME))
            yield rows[:, :, :, :width], level.unflatten(2, (height, width))


def _largest_divisor(number: int, limit: int) -> int:
    return next(n for n in range(max(1, min(number, limit)), 0, -1) if number % n == 0)


class _Blocks:
    """The blocks of a call and their common constants, expanded to one value per sampling point.

    A block has some heads of an image, or several images if a single one is too small to hide the overhead of calls.
    Constants are expanded because broadcasting is slow for rows as short as L·P. `rows` are (image, query, head)
    triples.

    Args:
        sizes: (height, width) of each level.
        shape: shape of the sampling locations, (B, Lq, H, L, P, 2).
        channels: channels of a head, D.
        threads: number of threads that compute blocks in parallel.
        limit: the largest number of sampling points in a block.
    """

    def __init__(
        self,
        sizes: tuple[tuple[int, int], ...],
        shape: tuple[int, ...],
        channels: int,
        dtype: torch.dtype,
        threads: int,
        limit: int,
    ):
        self.images, queries, self.heads, levels, points, _ = shape
        self.dtype = dtype
        self.frames = _Frames.around(sizes)
        samples = levels * points
        most = min(self.images * self.heads // threads, limit // max(1, queries * samples))
        self.width = _largest_divisor(self.heads, most)
        # The framed values of several images must fit into the cache too.
        together = min(most, limit // self.frames.length) // self.heads
        self.together = _largest_divisor(self.images, together)
        self.rows = self.together * queries * self.width
        self.framed_shape = (self.together * self.width, self.frames.length, channels)

        def per_point(levels: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
            constant = torch.tensor(levels, dtype=dtype)[:, None].expand(self.rows, -1, points)
            return constant.reshape(self.rows, samples)

        heights, widths = zip(*sizes, strict=True)
        self.size = torch.stack([per_point(widths, self.dtype), per_point(heights, self.dtype)])
        strides = [width + FRAME for width in widths]
        self.stride = per_point(strides)
        head = torch.arange(self.together * self.width, dtype=torch.int32).view(self.together, 1, self.width)
        head = head.expand(-1, queries, -1).reshape(self.rows, 1) * self.frames.length
        self.start = per_point(self.frames.starts) + head
        self.corners = torch.tensor([[0] * levels, [1] * levels, strides, [s + 1 for s in strides]])
        self.corners = self.corners.to(torch.int32).repeat_interleave(points, dim=-1)
        self.bags = torch.arange(self.rows + 1, dtype=torch.int32) * self.corners.numel()

    def run(self, work: Callable[[Block], None]) -> None:
        """Call `work` with the index of every block, in as many threads as PyTorch uses."""
        blocks = [
            (slice(image, image + self.together), slice(None), slice(head, head + self.width))
            for image in range(0, self.images, self.together)
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
            # the number is per thread, but new threads inherit the last value that any thread has set
            torch.set_num_threads(threads)

    def frame(self, values: Tensor) -> Tensor:
        """Add the frames to `values` (images, Σ h·w, heads, D); return (images · heads · length, D)."""
        framed = torch.zeros(self.framed_shape, dtype=self.dtype)
        for inside, level in self.frames.pairs(framed, values):
            inside.copy_(level)
        return framed.flatten(0, 1)

    def unframe(self, framed: Tensor, values: Tensor) -> None:
        """Copy `framed` (images · heads · length, D) without the frames into `values`."""
        for inside, level in self.frames.pairs(framed.view(self.framed_shape), values):
            level.copy_(inside)

    def samples(self, locations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the four cells of each point (rows, 4, L·P), int32, and the fractions in x and y, (rows, L·P) each.

        The order of the cells is top left, top right, bottom left, bottom right.

        Args:
            locations: (images, Lq, heads, L, P, 2).
        """
        pixel = torch.empty_like(self.size)
        pixel.view(2, *locations.shape[:-1]).copy_(locations.movedim(-1, 0))
        pixel.mul_(self.size).sub_(0.5)
        floor = pixel.floor()
        fraction = pixel.sub_(floor)
        # clamp the integer, so that NaN becomes a valid cell too
        x, y = floor.minimum(self.size).int().clamp_(min=-FRAME)
        cell = y.mul_(self.stride).add_(x).add_(self.start)
        return cell[:, None] + self.corners, fraction[0], fraction[1]


# All layers of a decoder share them, forward and backward.
_cached_blocks = lru_cache(maxsize=8)(_Blocks)


def _blocks_of(value: Tensor, shapes: Tensor, locations: Tensor) -> _Blocks:
    sizes = tuple((height, width) for height, width in shapes.tolist())
    check_cells(value, sizes)
    dtype = torch.promote_types(value.dtype, torch.float32)
    return _cached_blocks(sizes, tuple(locations.shape), value.shape[-1], dtype, torch.get_num_threads(), BLOCK_SAMPLES)


def _bilinear(weights: Tensor, fx: Tensor, fy: Tensor) -> Tensor:
    """Distribute `weights` (rows, L·P) to the four cells: return (rows, 4, L·P)."""
    below = weights * fy
    above = weights - below
    above_right = above * fx
    below_right = below * fx
    return torch.stack([above - above_right, above_right, below - below_right, below_right], dim=1)


def forward(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """See `multi_scale_deformable_attn`."""
    blocks = _blocks_of(value, shapes, locations)
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
        ).view(output[block].shape)

    blocks.run(work)
    return output.flatten(2)


def backward(
    grad_output: Tensor, value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and weights."""
    blocks = _blocks_of(value, shapes, locations)
    grad_output = grad_output.unflatten(2, value.shape[2:])
    grad_value, grad_locations, grad_weights = (x.new_empty(x.shape) for x in (value, locations, weights))

    def work(block: Block) -> None:
        framed = blocks.frame(value[block])
        grad = grad_output[block].to(blocks.dtype).flatten(0, 2).contiguous()
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
