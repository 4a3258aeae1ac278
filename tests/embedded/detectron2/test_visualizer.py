"""What is drawn: where, in which colour, readable, and inside the image."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer
from PIL import Image

GREY = np.full((100, 140, 3), 128, dtype=np.uint8)
CLASSES = SimpleNamespace(thing_classes=["cat", "dog"], thing_colors=[[255, 0, 0], [0, 0, 255]])


def changed(drawn, blank=GREY):
    """Rows and columns of the pixels that differ from the blank image."""
    return np.argwhere((drawn.get_image() != blank).any(axis=2))


def extent(drawn, color):
    """First and last column and row where `color` is, as x0, y0, x1, y1 (the last ones included)."""
    rows, columns = np.nonzero((drawn.get_image() == color).all(axis=2))
    return columns.min(), rows.min(), columns.max(), rows.max()


def instances(boxes, classes, scores=None):
    fields = {} if scores is None else {"scores": torch.tensor(scores)}
    return Instances((100, 140), pred_boxes=Boxes(torch.tensor(boxes)), pred_classes=torch.tensor(classes), **fields)


@pytest.mark.parametrize("style", ["-", "--"])
@pytest.mark.parametrize("scale", [1, 3, 0.5])
def test_box_lies_on_its_pixels(style, scale):
    """The outline covers the outermost pixels of the box at every scale, nothing further, and not the middle."""
    visualizer = Visualizer(GREY, scale=scale)
    drawn = visualizer.draw_box([20, 30, 80, 90], alpha=1, edge_color="red", line_style=style)
    x0, y0, x1, y1 = extent(drawn, (255, 0, 0))
    assert (x0, y0, x1 + 1, y1 + 1) == tuple(scale * v for v in (20, 30, 80, 90))
    assert tuple(drawn.get_image()[round(60 * scale), round(50 * scale)]) == (128, 128, 128)
    red = (drawn.get_image()[y0] == (255, 0, 0)).all(axis=1)[x0 : x1 + 1].mean()
    assert red == 1 if style == "-" else 0.3 < red < 0.8


def test_alpha_mixes():
    """Half opacity is half way between the colour and the image."""
    drawn = Visualizer(GREY).draw_box([20, 30, 80, 90], alpha=0.5, edge_color=(1.0, 0.0, 0.0))
    assert np.abs(drawn.get_image()[60, 20].astype(int) - (191, 64, 64)).max() <= 2


@pytest.mark.parametrize(
    "box", [[-50, -50, 300, 300], [138, 98, 140, 100], [0, 0, 1, 1], [60, 60, 60, 60], [500, 500, 600, 600]]
)
def test_boxes_at_and_beyond_the_border(box):
    """Boxes that are degenerate or (partly) outside are drawn as far as they can be; their label stays inside."""
    drawn = Visualizer(GREY).overlay_instances(boxes=[box], labels=["label"], assigned_colors=["red"], alpha=1.0)
    x0, y0, x1, y1 = extent(drawn, (255, 0, 0))
    assert x1 - x0 >= 20 and y1 - y0 >= 8  # all of the plate, in an image that it just fits in


@pytest.mark.parametrize("position", [(0, 0), (139, 99), (-40, 50), (70, 400)])
@pytest.mark.parametrize("alignment", ["left", "center", "right"])
def test_text_stays_inside(position, alignment):
    """Text asked for at or beyond the border is moved, not cut: all its pixels are those of the middle."""

    def text_at(where):
        drawn = Visualizer(GREY).draw_text("Text", where, color="w", horizontal_alignment=alignment)
        (y0, x0), (y1, x1) = changed(drawn).min(axis=0), changed(drawn).max(axis=0)
        return drawn.get_image()[y0 : y1 + 1, x0 : x1 + 1]

    assert np.array_equal(text_at(position), text_at((70, 50)))
    assert np.ptp(text_at(position)) > 200


def test_text_alignment_and_rotation():
    """The position is the left, the middle or the right of the text, below y; rotation turns it upright."""
    spans = {}
    for alignment in ("left", "center", "right"):
        pixels = changed(Visualizer(GREY).draw_text("Text", (70, 40), color="w", horizontal_alignment=alignment))
        spans[alignment] = pixels[:, 1].min(), pixels[:, 1].max()
        assert pixels[:, 0].min() == 40
    assert spans["left"][0] == 70 and spans["right"][1] == 69
    assert abs(sum(spans["center"]) / 2 - 70) <= 1
    turned = changed(Visualizer(GREY).draw_text("Long text", (70, 20), color="w", rotation=90))
    assert np.ptp(turned[:, 0]) > 2 * np.ptp(turned[:, 1])
    with pytest.raises(ValueError, match="middle"):
        Visualizer(GREY).draw_text("Text", (0, 0), horizontal_alignment="middle")


def test_labels_do_not_hide_each_other():
    """Two objects with nearly the same box get labels at two places."""
    boxes = [[40, 40, 100, 80], [41, 41, 101, 81]]
    drawn = Visualizer(GREY).overlay_instances(
        boxes=boxes, labels=["object", "object"], assigned_colors=[(1, 0, 0), (0, 0, 1)], alpha=0.0
    )
    red = extent(drawn, (255, 0, 0))
    blue = extent(drawn, (0, 0, 255))
    assert red[3] < blue[1] or blue[3] < red[1] or red[2] < blue[0] or blue[2] < red[0]


def test_small_boxes_are_drawn_over_large_ones():
    """A large box given last does not cover the small one's line where they coincide."""
    drawn = Visualizer(GREY).overlay_instances(
        boxes=torch.tensor([[20.0, 20, 50, 50], [20, 20, 120, 90]]), assigned_colors=["blue", "red"], alpha=1.0
    )
    assert tuple(drawn.get_image()[35, 20]) == (0, 0, 255)
    assert tuple(drawn.get_image()[70, 20]) == (255, 0, 0)


def test_default_colors_are_distinguishable():
    """Any two of the first eight colours differ clearly."""
    boxes = [[10 + 15 * i, 20, 20 + 15 * i, 90] for i in range(8)]
    image = Visualizer(GREY).overlay_instances(boxes=boxes, alpha=1.0).get_image().astype(int)
    colors = [image[50, 10 + 15 * i] for i in range(8)]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(colors) for b in colors[:i]]
    assert min(distances) > 60


def test_predictions_by_class():
    """SEGMENTATION mode paints a class in its metadata colour; jittering tells objects of a class apart."""
    found = instances([[10.0, 30, 40, 90], [60.0, 30, 90, 90], [100.0, 30, 130, 90]], [0, 0, 1], [0.9, 0.8, 0.7])

    def edges(jittering):
        visualizer = Visualizer(GREY, CLASSES, instance_mode=ColorMode.SEGMENTATION)
        image = visualizer.draw_instance_predictions(found, jittering=jittering).get_image()
        return [tuple(image[70, x].tolist()) for x in (10, 60, 100)]

    assert edges(False) == [(255, 0, 0), (255, 0, 0), (0, 0, 255)]
    first, second, _ = edges(True)
    assert first != second


def test_labels_say_class_and_score():
    """Labels are those of the explicit call, whichever of the fields there are."""
    boxes = [[30.0, 40, 100, 90]]
    for classes, scores, label in ([[1], [0.874], "dog 87%"], [[1], None, "dog"]):
        drawn = Visualizer(GREY, CLASSES).draw_instance_predictions(instances(boxes, classes, scores))
        explicit = Visualizer(GREY).overlay_instances(boxes=boxes, labels=[label], alpha=1.0)
        assert np.array_equal(drawn.get_image(), explicit.get_image())
    unnamed = Visualizer(GREY).draw_instance_predictions(instances(boxes, [1]))
    explicit = Visualizer(GREY).overlay_instances(boxes=boxes, labels=["1"], alpha=1.0)
    assert np.array_equal(unnamed.get_image(), explicit.get_image())


def test_dataset_dict():
    """Annotations are drawn from their own box format; crowds are dashed; an image without any stays as it is."""
    annotation = {"bbox": [20, 30, 60, 60], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    visualizer = Visualizer(GREY, CLASSES)
    drawn = visualizer.draw_dataset_dict({"annotations": [annotation]})
    x0, _, x1, y1 = extent(drawn, (255, 0, 0))
    assert (x0, x1 + 1, y1 + 1) == (20, 80, 90)
    crowd = Visualizer(GREY, CLASSES).draw_dataset_dict({"annotations": [{**annotation, "iscrowd": 1}]})
    solid, dashed = (((d.get_image()[89, 20:80]) == (255, 0, 0)).all(axis=1).mean() for d in (drawn, crowd))
    assert solid == 1 and dashed < 0.8
    for blank in ({}, {"annotations": []}):
        assert np.array_equal(Visualizer(GREY).draw_dataset_dict(blank).get_image(), GREY)


def test_nothing_found():
    """An image without detections is returned as it came."""
    drawn = Visualizer(GREY).draw_instance_predictions(instances(np.zeros((0, 4)).tolist(), []))
    assert np.array_equal(drawn.get_image(), GREY)
    assert np.array_equal(Visualizer(GREY).overlay_instances().get_image(), GREY)


def test_unequal_lengths():
    """A label too many is an error, not a label on another box."""
    with pytest.raises(ValueError, match="1 boxes but 2 labels"):
        Visualizer(GREY).overlay_instances(boxes=[[0, 0, 9, 9]], labels=["a", "b"])


def test_output(tmp_path):
    """`save` writes what `get_image` returns; the input is left alone; grey mode takes the colour out."""
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    before = image.copy()
    visualizer = Visualizer(image.astype(np.float32), scale=2)
    visualizer.draw_box([5, 5, 30, 30])
    output = visualizer.get_output()
    assert isinstance(output, VisImage) and (output.width, output.height) == (120, 80)
    output.save(str(tmp_path / "out.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), output.get_image())
    assert output.get_image().dtype == np.uint8 and np.array_equal(image, before)
    grey = Visualizer(image, instance_mode=ColorMode.IMAGE_BW).get_output().get_image()
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all()
