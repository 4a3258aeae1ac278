import math

import pytest
import torch
from projects.detr_common import encoder_proposals, padding_mask, reference_points, top_tokens, valid_ratio

SHAPES = [(8, 12), (4, 6), (2, 3)]
VALID = [[(8, 12), (4, 6), (2, 3)], [(5, 7), (3, 4), (2, 2)]]  # image, level: rows and columns that are not padding


def masks():
    return [padding_mask([VALID[0][i], VALID[1][i]], SHAPES[i], "cpu") for i in range(3)]


def cells():
    for level, (height, width) in enumerate(SHAPES):
        for row in range(height):
            for col in range(width):
                yield level, row, col


def test_valid_ratio_is_width_before_height():
    """Width and height are not swapped (square images would hide that)."""
    assert valid_ratio(masks()[0]).tolist() == [[1, 1], pytest.approx([7 / 12, 5 / 8])]


def test_reference_points_lie_at_the_same_place_of_every_level():
    """A token's reference point is its own position on all levels, in coordinates of the padded map."""
    ratios = torch.stack([valid_ratio(mask) for mask in masks()], dim=1)
    points = reference_points(SHAPES, ratios)
    for image in range(2):
        for token, (level, row, col) in enumerate(cells()):
            rows, cols = VALID[image][level]
            for other, (height, width) in enumerate(SHAPES):
                h, w = VALID[image][other]
                x, y = (col + 0.5) / cols * w / width, (row + 0.5) / rows * h / height
                assert points[image, token, other].tolist() == pytest.approx([x, y], abs=1e-5)


def test_proposals_are_one_box_per_token_inside_the_image():
    """Centre, size and usable tokens equal the definition, cell by cell."""
    padding = torch.cat([mask.flatten(1) for mask in masks()], dim=1)
    logits, usable = encoder_proposals(padding, SHAPES)
    for image in range(2):
        for token, (level, row, col) in enumerate(cells()):
            rows, cols = VALID[image][level]
            side = 0.05 * 2**level
            box = [(col + 0.5) / cols, (row + 0.5) / rows, side, side]
            inside = row < rows and col < cols and all(0.01 < value < 0.99 for value in box)
            assert usable[image, token].item() is inside
            expected = [math.log(v / (1 - v)) if inside else math.inf for v in box]
            assert logits[image, token].tolist() == pytest.approx(expected, abs=1e-4)


def test_too_few_tokens_is_explained():
    """900 queries on a thumbnail: the message names both numbers instead of torch's 'k out of range'."""
    with pytest.raises(ValueError, match="126 positions, fewer than the 900 queries"):
        top_tokens(torch.zeros(2, 126), 900)
