import torch
from detectron2.structures import ImageList
from projects.detr_common import extract_features, padding_mask, resize_mask
from torch import nn


def test_padding_mask_marks_what_lies_outside_of_each_image():
    """The mask is true exactly in padding."""
    mask = padding_mask([(2, 3), (4, 1)], (4, 3), "cpu")
    assert mask[0].tolist() == [[False] * 3, [False] * 3, [True] * 3, [True] * 3]
    assert mask[1].tolist() == [[False, True, True]] * 4


def test_resized_mask_keeps_cells_that_begin_in_the_image():
    """A cell is valid if its first pixel is valid, as in the published detectors."""
    mask = padding_mask([(33, 64)], (64, 64), "cpu")
    assert (~resize_mask(mask, (8, 8)))[0, :, 0].sum() == 5


def pyramid(x):
    first = net[0](x)
    return [first, net[1](first)]


torch.manual_seed(0)
net = nn.ModuleList(
    [
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, 1, 1)),
        nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.GroupNorm(2, 8)),
    ]
)


def test_exact_features_of_an_image_do_not_depend_on_its_batch():
    """With `exact`, features do not depend on padding, despite convolutions and group norms."""
    images = [torch.randn(3, 17, 30), torch.randn(3, 32, 21)]
    maps, masks = extract_features(pyramid, ImageList.from_tensors(images), exact=True)
    for index, image in enumerate(images):
        for level, alone in enumerate(pyramid(image[None])):
            height, width = alone.shape[-2:]
            torch.testing.assert_close(maps[level][index, :, :height, :width], alone[0])
            inside = ~masks[level][index]
            assert inside[:height, :width].all() and inside.sum() == height * width
            assert maps[level][index].masked_select(~inside).eq(0).all()


def test_training_features_come_from_one_pass_over_the_padded_batch():
    """In training all images pass through the backbone in one call."""
    calls = []
    batch = ImageList.from_tensors([torch.randn(3, 17, 30), torch.randn(3, 32, 21)])
    maps, masks = extract_features(lambda x: calls.append(x.shape) or pyramid(x), batch, exact=False)
    assert calls == [(2, 3, 32, 30)]
    assert [mask.shape[-2:] for mask in masks] == [x.shape[-2:] for x in maps]
