"""Drawn images of circles, squares and triangles, with COCO's annotations.

Points are (x, y) in pixels; masks are bool (height, width).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm


def signed_area(points: np.ndarray) -> float:
    """Area inside the closed line through `points` (P, 2); negative when it runs counter-clockwise on screen."""
    x, y = points.T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)


def unit_polygon(corners: int) -> np.ndarray:
    """The regular polygon of area 1 around the origin, lying on a side: (corners, 2)."""
    angles = (np.arange(corners) + 0.5) * 2 * np.pi / corners + np.pi / 2
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return points / np.sqrt(signed_area(points))


CORNERS = {"circle": 64, "square": 4, "triangle": 3}
OUTLINES = {name: unit_polygon(corners) for name, corners in CORNERS.items()}
CATEGORIES = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(OUTLINES, start=1)]

# Square roots of an object's area, relative to the image's side, and how often each range is drawn from.
SIDES = {(0.14, 0.24): 0.35, (0.25, 0.55): 0.53, (0.78, 0.92): 0.12}
OBJECTS_PER_IMAGE = {1: 0.20, 2: 0.28, 3: 0.26, 4: 0.16, 5: 0.10}
CROWD_EVERY, EMPTY_EVERY = 12, 25  # images
CROWD_MEMBERS = (8, 14)
CROWD_SIDES = (0.075, 0.10)
PLACEMENTS = 25  # tried for each object
MIN_INSIDE = 0.7  # of a shape's area lies in the image
MIN_VISIBLE = 0.6  # of what lies in the image stays visible under later shapes
MIN_CONTRAST = 90  # between a shape's colour and what it covers, as a distance in RGB
MAX_TILT = 0.35  # radians
SUPERSAMPLING = 4


@dataclass
class Thing:
    """An object or a crowd region in the making."""

    category_id: int
    extent: int  # its pixels in the image
    visible: np.ndarray  # mask of those that nothing covers so far
    crowd: bool = False


def coverage(points: np.ndarray, size: int) -> np.ndarray:
    """How much of each pixel lies inside the polygon: (size, size) float32 in [0, 1]."""
    canvas = Image.new("L", (size * SUPERSAMPLING,) * 2)
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points * SUPERSAMPLING], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def outline(rng: np.random.Generator, name: str, side: float, center: np.ndarray) -> np.ndarray:
    """The shape with area side², stretched upwards or sideways and tilted at random."""
    stretch = rng.uniform(1, 1.3) ** rng.choice([-0.5, 0.5])
    tilt = rotation(rng.uniform(-MAX_TILT, MAX_TILT))
    return side * OUTLINES[name] @ np.diag([stretch, 1 / stretch]) @ tilt + center


def trace(mask: np.ndarray) -> list[list[float]]:
    """Polygons [x0, y0, x1, y1, …] along the pixel edges around each 4-connected part; holes are filled.

    Every pixel side between inside and outside is a step with the inside on its right; the steps are joined
    end to start, turning right where two parts touch at a corner.
    """
    padded = np.pad(mask, 1)
    steps: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    sides = (  # offset of the neighbour; start and direction of the step
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (1, 0), (0, 1)),
        ((1, 0), (1, 1), (-1, 0)),
        ((0, -1), (0, 1), (0, -1)),
    )
    for (dy, dx), (x0, y0), direction in sides:
        neighbour = padded[1 + dy : 1 + dy + mask.shape[0], 1 + dx : 1 + dx + mask.shape[1]]
        for y, x in np.argwhere(mask & ~neighbour).tolist():
            steps[x + x0, y + y0].append(direction)
    polygons = []
    while steps:
        start = at = next(iter(steps))
        heading = None
        corners = []
        while at != start or heading is None:
            options = steps[at]
            right = None if heading is None else (-heading[1], heading[0])
            turn = options.pop(options.index(right) if right in options else -1)
            if not options:
                del steps[at]
            if turn != heading:
                corners.append(at)
            heading, at = turn, (at[0] + turn[0], at[1] + turn[1])
        if signed_area(np.array(corners)) > 0:
            polygons.append([float(value) for corner in corners for value in corner])
    return polygons


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed RLE: runs down the columns, zeros first."""
    column_wise = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(column_wise, prepend=False))
    counts = np.diff(np.concatenate([[0], changes, [column_wise.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


# ---- Drawing. Images are float32 (size, size, 3), 0 to 255. ----


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """(size, size) in about [0, 1], with about `cells` bumps along each side."""
    grid = Image.fromarray(rng.random((cells + 1, cells + 1), dtype=np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size) in [0, 1]: a sine across the image at a random angle and period."""
    y, x = np.mgrid[:size, :size]
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, size / 5)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + rng.uniform(0, 2 * np.pi))
    return ((wave + 1) / 2).astype(np.float32)


def checks(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size), 0 or 1 in a chessboard of random pitch."""
    y, x = np.mgrid[:size, :size] + rng.integers(size)
    pitch = rng.uniform(3, size / 12)
    return ((x // pitch + y // pitch) % 2).astype(np.float32)


def blotches(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size) in about [0, 1]: noise of random fineness."""
    return smooth_noise(rng, size, cells=int(rng.integers(3, size // 4)))


# A class cue beside the outline, without which a dozen epochs from scratch are too few.
TEXTURES = {"circle": stripes, "square": checks, "triangle": blotches}


def blend(weight: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`first` where `weight` (size, size) is 0, `second` where it is 1."""
    return first + weight[..., None] * (second - first)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    grey = rng.uniform(40, 215, (3, 1))
    first, second, third = (grey + rng.uniform(-15, 15, (3, 3))).astype(np.float32)
    broad = blend(smooth_noise(rng, size, cells=int(rng.integers(2, 5))), first, second)
    texture = list(TEXTURES.values())[rng.integers(len(TEXTURES))]
    return blend(texture(rng, size) * rng.uniform(0.05, 0.2), broad, third)


def paint(rng: np.random.Generator, image: np.ndarray, cover: np.ndarray, name: str) -> None:
    """Fill `cover` with the texture of a class, in two shades of a colour that contrasts with the image under it."""
    under = image[cover >= 0.5]
    under = under[:: len(under) // 50 + 1]
    colors = rng.uniform(0, 255, (20, 3))
    distances = np.linalg.norm(under[:, None] - colors, axis=2)
    contrast = np.quantile(distances, 0.1, axis=0)  # to nearly all of it: the shape may lie across others
    color = colors[np.argmax(np.minimum(contrast, MIN_CONTRAST))]  # the first with enough, else the best
    other = np.clip(color + rng.uniform(-45, 45, 3), 0, 255)
    fill = blend(TEXTURES[name](rng, image.shape[0]), color.astype(np.float32), other.astype(np.float32))
    image[:] = blend(cover, image, fill)


def cover_up(things: list[Thing], mask: np.ndarray) -> bool:
    """Remove `mask` from the visible parts of `things`; if that hides too much, change nothing and return False."""
    remaining = [thing.visible & ~mask for thing in things]
    if any(left.sum() < MIN_VISIBLE * thing.extent for left, thing in zip(remaining, things, strict=True)):
        return False
    for thing, left in zip(things, remaining, strict=True):
        thing.visible = left
    return True


def add_object(rng: np.random.Generator, image: np.ndarray, things: list[Thing], side: float) -> None:
    """Draw a shape of area side² where it fits; give up after a few tries."""
    size = image.shape[0]
    index = int(rng.integers(len(CATEGORIES)))
    for _ in range(PLACEMENTS):
        center = rng.uniform(0.3 * side, size - 0.3 * side, 2)
        cover = coverage(outline(rng, CATEGORIES[index]["name"], side, center), size)
        mask = cover >= 0.5
        if mask.sum() >= MIN_INSIDE * side**2 and cover_up(things, mask):
            things.append(Thing(CATEGORIES[index]["id"], int(mask.sum()), mask))
            paint(rng, image, cover, CATEGORIES[index]["name"])
            return


def add_crowd(rng: np.random.Generator, image: np.ndarray, things: list[Thing]) -> None:
    """Draw a cluster of small shapes of one class in staggered rows, most of which touch each other."""
    size = image.shape[0]
    category = CATEGORIES[int(rng.integers(len(CATEGORIES)))]
    members = int(rng.integers(*CROWD_MEMBERS, endpoint=True))
    pitch = 1.1 * np.mean(CROWD_SIDES) * size
    columns = int(np.ceil(np.sqrt(members * 1.5)))
    rows = -(-members // columns)
    corner = rng.uniform(pitch, size - np.array([columns + 0.5, rows]) * pitch)
    region = np.zeros((size, size), dtype=bool)
    for member in range(members):
        row, column = divmod(member, columns)
        center = corner + (np.array([column + row % 2 / 2, row]) + rng.uniform(-0.3, 0.3, 2)) * pitch
        cover = coverage(outline(rng, category["name"], rng.uniform(*CROWD_SIDES) * size, center), size)
        paint(rng, image, cover, category["name"])
        region |= cover >= 0.5
    things.append(Thing(category["id"], int(region.sum()), region, crowd=True))


def draw_image(rng: np.random.Generator, size: int, crowd: bool, empty: bool) -> tuple[np.ndarray, list[Thing]]:
    """Draw an image, uint8 (size, size, 3); return it and the visible things."""
    image = background(rng, size)
    things: list[Thing] = []
    if crowd:
        add_crowd(rng, image, things)
    if not empty:
        count = rng.choice(list(OBJECTS_PER_IMAGE), p=list(OBJECTS_PER_IMAGE.values()))
        ranges = rng.choice(list(SIDES), size=count, p=list(SIDES.values()))
        sides = np.exp([rng.uniform(*np.log(limits)) for limits in ranges]) * size
        # Larger ones first, as farther ones would be: what covers an object is smaller than itself.
        for side in sorted(sides, reverse=True):
            add_object(rng, image, things, side)
    image += rng.normal(0, rng.uniform(2, 9), image.shape)
    return image.clip(0, 255).astype(np.uint8), things


def annotation(thing: Thing, annotation_id: int, image_id: int) -> dict:
    rows, columns = np.flatnonzero(thing.visible.any(axis=1)), np.flatnonzero(thing.visible.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": thing.category_id,
        "iscrowd": int(thing.crowd),
        "area": float(thing.visible.sum()),
        "bbox": [float(v) for v in (left, top, columns[-1] + 1 - left, rows[-1] + 1 - top)],
        "segmentation": run_lengths(thing.visible) if thing.crowd else trace(thing.visible),
    }


def write_synthetic(root: Path, counts: dict[str, int], size: int, seed: int) -> dict[str, dict]:
    """Draws `counts[split]` images of size × size pixels for each split; returns the annotation files' content."""
    written = {}
    for split_index, (split, count) in enumerate(counts.items()):
        first_id = split_index * 1_000_000 + 1
        images, annotations = [], []
        for index in tqdm(range(count), f"drawing {split}", unit="image", leave=False, disable=None):
            rng = np.random.default_rng([seed, split_index, index])
            # From the second and the third image on, so that the smallest sets have them too.
            empty = index % EMPTY_EVERY == 2
            pixels, things = draw_image(rng, size, crowd=index % CROWD_EVERY == 1 and not empty, empty=empty)
            image_id = first_id + index
            name = f"{image_id:012d}.jpg"
            Image.fromarray(pixels).save(root / split / name, quality=92)
            images.append({"id": image_id, "file_name": name, "height": size, "width": size, "license": 1})
            for thing in things:
                annotations.append(annotation(thing, first_id + len(annotations), image_id))
        written[split] = {
            "info": {
                "description": f"Synthetic shapes, {size} px, seed {seed}",
                "version": "1.0",
                "contributor": "make_tiny_coco.py",
            },
            "licenses": [
                {"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
            ],
            "images": images,
            "annotations": annotations,
            "categories": CATEGORIES,
        }
    return written
