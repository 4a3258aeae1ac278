"""Augmentations and transforms."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_resize_shortest_edge_equals_recorded(golden, case):
    """Sizes, pixels (within 1) and boxes equal those of the published pipeline."""
    case = golden(f"resize_shortest_edge_{case}")
    resize = T.ResizeShortestEdge(case.config["short_edge_length"], case.config["max_size"])
    aug_input = T.AugInput(case.input["image"].numpy(), boxes=case.input["boxes"].numpy())
    resize(aug_input)
    expected = case.output["image"].numpy().astype(int)
    assert aug_input.image.shape == expected.shape
    assert np.abs(aug_input.image.astype(int) - expected).max() <= 1
    np.testing.assert_allclose(aug_input.boxes, case.output["boxes"].numpy(), rtol=1e-6)


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 1000), st.integers(1, 1500))
def test_output_shape_keeps_its_promises(height, width, short, limit):
    """The shorter side has the given length unless the longer side exceeds its limit; the aspect ratio is kept."""
    new = T.ResizeShortestEdge.get_output_shape(height, width, short, limit)
    assert max(new) <= max(limit, 1)
    assert min(new) == short or max(new) == limit
    scale = min(short / min(height, width), limit / max(height, width))
    assert abs(new[0] - max(1, height * scale)) <= 0.501
    assert abs(new[1] - max(1, width * scale)) <= 0.501


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ({"short_edge_length": 20}, {20}),
        ({"short_edge_length": (10, 30, 50), "sample_style": "choice"}, {10, 30, 50}),
        ({"short_edge_length": (10, 12)}, {10, 11, 12}),
        ({"short_edge_length": (0, 0)}, {40}),
    ],
)
def test_resize_draws_all_lengths_and_no_other(arguments, seen):
    """All given lengths occur."""
    resize = T.ResizeShortestEdge(**arguments)
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    assert {resize.get_transform(image).apply_image(image).shape[0] for _ in range(60)} == seen


@pytest.mark.parametrize("arguments", [{"short_edge_length": (1, 2, 3)}, {"short_edge_length": 5, "sample_style": "x"}])
def test_resize_refuses_nonsense(arguments):
    """Three lengths for a range, and an unknown style, are errors."""
    with pytest.raises(ValueError, match="sample_style"):
        T.ResizeShortestEdge(**arguments)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int32, np.float64])
@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 1), (8, 6, 3), (8, 6, 5)])
def test_resize_of_any_image(dtype, shape):
    """Every channel count and dtype is resized like a grey image, channel by channel."""
    image = np.random.randint(0, 200, shape).astype(dtype)
    resize = T.ResizeTransform(8, 6, 4, 9)
    resized = resize.apply_image(image)
    assert resized.dtype == dtype
    assert resized.shape == (4, 9, *shape[2:])
    for channel in range(image[..., None].shape[2] if image.ndim == 2 else shape[2]):
        one = (image if image.ndim == 2 else image[..., channel]).astype(np.float32)
        resized_image = (resized if image.ndim == 2 else resized[..., channel]).astype(np.float32)
        assert np.abs(resize.apply_image(one) - resized_image).max() <= 1


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_resize_is_pils(data):
    """Pixels equal PIL's up to rounding: larger, smaller, for views, flipped and read-only arrays."""
    height, width, new_height, new_width = (data.draw(st.integers(1, 90)) for _ in range(4))
    image = np.random.default_rng(height).integers(0, 256, (height + 2, width + 3, 3), dtype=np.uint8)
    image.flags.writeable = data.draw(st.booleans())
    image = image[1:-1, 2:-1][:, :: data.draw(st.sampled_from([1, -1]))]
    resized_image = T.ResizeTransform(height, width, new_height, new_width).apply_image(image)
    expected = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
    assert resized_image.shape == expected.shape and resized_image.dtype == np.uint8
    assert np.abs(resized_image.astype(int) - expected).max() <= 1


def test_resize_of_labels_points_and_back():
    """Labels are not mixed, points scale with the image, and the inverse restores the size."""
    resize = T.ResizeTransform(8, 6, 16, 3)
    labels = np.random.choice([0, 7, 90], (8, 6)).astype(np.uint8)
    assert set(np.unique(resize.apply_segmentation(labels))) <= {0, 7, 90}
    points = np.array([[6.0, 8.0], [1.5, 2.0]])
    assert resize.apply_coords(points).tolist() == [[3, 16], [0.75, 4]]
    np.testing.assert_allclose(resize.inverse().apply_coords(resize.apply_coords(points)), points)
    with pytest.raises(ValueError, match="resize of"):
        resize.apply_image(np.zeros((5, 5), dtype=np.uint8))


def marked(height=40, width=60):
    """Return a black image with a white box, and the box."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[10:20, 30:50] = 255
    return T.AugInput(image, boxes=np.array([[30.0, 10.0, 50.0, 20.0]]), sem_seg=image[..., 0])


def white_box(image):
    ys, xs = np.nonzero(image[..., 0] > 127)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize(
    "augs",
    [
        [T.RandomFlip(prob=1.0)],
        [T.RandomFlip(prob=1.0, horizontal=False, vertical=True)],
        [T.ResizeShortestEdge(80)],
        [T.RandomFlip(prob=1.0), T.ResizeShortestEdge(80), T.HFlipTransform(120)],
        [T.CropTransform(20, 5, 35, 30)],
        [T.AugmentationList([T.RandomFlip(prob=1.0), T.ResizeShortestEdge(20)]), T.NoOpTransform()],
    ],
)
def test_boxes_move_with_the_pixels(augs):
    """After any chain of transforms the box fits the object; labels and single boxes too."""
    start = marked()
    image, boxes = start.image, start.boxes
    aug_input = marked()
    transforms = aug_input.apply_augmentations(augs)
    assert white_box(aug_input.image) == aug_input.boxes[0].round().tolist()
    np.testing.assert_array_equal(aug_input.sem_seg > 127, aug_input.image[..., 0] > 127)
    np.testing.assert_array_equal(transforms.apply_image(image), aug_input.image)
    np.testing.assert_allclose(transforms.apply_box(boxes), aug_input.boxes)


def test_apply_augmentations_takes_images_too():
    """The functional form returns the type of its input, an image or an AugInput."""
    image = marked().image
    flipped, transforms = T.apply_augmentations([T.RandomFlip(prob=1.0)], image)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    assert isinstance(transforms, T.TransformList)
    aug_input = marked()
    assert T.apply_augmentations([T.RandomFlip(prob=1.0)], aug_input)[0] is aug_input


def test_random_flip_probability():
    """Half of the images are flipped by default; 0 and 1 mean never and always."""
    image = np.zeros((2, 3), dtype=np.uint8)

    def flips(prob):
        return sum(isinstance(T.RandomFlip(prob).get_transform(image), T.HFlipTransform) for _ in range(400))

    assert flips(0.0) == 0
    assert 150 < flips(0.5) < 250
    assert flips(1.0) == 400
    with pytest.raises(ValueError, match="either"):
        T.RandomFlip(horizontal=True, vertical=True)


@pytest.mark.parametrize(
    ("crop_type", "crop_size", "heights", "widths"),
    [
        ("relative", (0.5, 0.25), (20, 20), (15, 15)),
        ("relative_range", (0.5, 0.25), (20, 40), (15, 60)),
        ("absolute", (30, 100), (30, 30), (60, 60)),
        ("absolute_range", (10, 50), (10, 40), (10, 50)),
        ("absolute_range", (100, 200), (40, 40), (60, 60)),
    ],
)
def test_random_crop_sizes(crop_type, crop_size, heights, widths):
    """Crops lie in the image, and their sizes reach both ends of their range."""
    crop = T.RandomCrop(crop_type, crop_size)
    image = np.arange(40 * 60).reshape(40, 60)
    sizes = []
    for _ in range(600):
        transform = crop.get_transform(image)
        cut = transform.apply_image(image)
        assert cut[0, 0] == image[transform.y0, transform.x0]
        assert cut.shape == (transform.h, transform.w)
        sizes.append(cut.shape)
    low, high = np.min(sizes, axis=0), np.max(sizes, axis=0)
    # Continuous ranges come close to their ends.
    slack = 1 if crop_type.endswith("range") else 0
    np.testing.assert_allclose([low[0], high[0]], heights, atol=slack)
    np.testing.assert_allclose([low[1], high[1]], widths, atol=slack)


def test_random_crop_refuses_nonsense():
    """An unknown type, or a single size, is an error of the constructor."""
    with pytest.raises(ValueError, match="absolut_range"):
        T.RandomCrop("absolut_range", (1, 2))
    with pytest.raises(ValueError, match="two numbers"):
        T.RandomCrop("absolute", (1,))


def test_augmentations_see_what_they_name():
    """A user's augmentation gets the inputs that its parameters name."""

    class CropToFirstBox(T.Augmentation):
        def get_transform(self, image, boxes):
            x0, y0, x1, y1 = boxes[0].astype(int)
            return T.CropTransform(x0, y0, x1 - x0, y1 - y0)

    aug_input = marked()
    CropToFirstBox()(aug_input)
    assert aug_input.image.shape == (10, 20, 3)
    assert aug_input.image.min() == 255
