"""Class names in any script, on the pictures that people look at."""

import logging
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from detrkit.datasets.classes import Classes
from detrkit.inference import fonts
from detrkit.inference.pictures import draw

GREY = np.full((100, 140, 3), 128, dtype=np.uint8)
CAT, DOG = "\u732b", "\u72d7"  # Chinese


def drawn(name, font=None):
    """The picture of one object of a class, as array."""
    found = Instances(GREY.shape[:2], pred_boxes=Boxes(torch.tensor([[20.0, 40, 120, 90]])))
    found.pred_classes, found.scores = torch.tensor([0]), torch.tensor([0.5])
    return np.asarray(draw(GREY, found, Classes.named([name]).metadata(), font))


@pytest.fixture
def font_file(tmp_path):
    """A font with two letters, a square and a triangle."""
    builder = FontBuilder(1000, isTTF=True)
    outlines = {".notdef": [(0, 0), (100, 0), (100, 700), (0, 700)], "a": [(0, 0), (700, 0), (700, 700), (0, 700)],
                "b": [(0, 0), (700, 0), (350, 700)]}  # fmt: skip
    glyphs = {}
    for name, (first, *others) in outlines.items():
        pen = TTGlyphPen(None)
        pen.moveTo(first)
        for point in others:
            pen.lineTo(point)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyphOrder(list(outlines))
    builder.setupCharacterMap({ord(CAT): "a", ord(DOG): "b"})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (800, 0) for name in outlines})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Two Letters", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "two.ttf")
    return tmp_path / "two.ttf"


@pytest.fixture
def system_fonts(monkeypatch):
    """Sets the fonts of the computer."""

    def use(*files):
        fonts._system_font.cache_clear()
        entries = [font_manager.ttfFontProperty(font_manager.get_font(str(file))) for file in files]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])

    yield use
    fonts._system_font.cache_clear()


@pytest.mark.parametrize("one, other", [("K\u00e4fer", "K\u00f6fer"), ("\u03b1", "\u03b2"), ("\u0436", "\u0437")])
def test_latin_greek_and_cyrillic_letters(one, other, caplog):
    """Protects names such as "Käfer" from boxes, which are the same for every letter; without a warning."""
    assert not np.array_equal(drawn(one), drawn(other))
    assert not caplog.records


def test_other_letters_take_a_font_of_the_computer(font_file, system_fonts, caplog):
    """Protects Chinese names where the computer has such a font, and matplotlib's settings."""
    before = dict(matplotlib.rcParams)
    system_fonts(fonts._dejavu(), font_file)
    assert not np.array_equal(drawn(CAT), drawn(DOG))
    assert not caplog.records and dict(matplotlib.rcParams) == before


def test_letters_that_no_font_has(system_fonts, caplog):
    """Protects people from puzzling over boxes: one warning, for any number of pictures, says what to do."""
    system_fonts(fonts._dejavu())
    with caplog.at_level(logging.WARNING, fonts.logger.name):
        for _ in range(3):
            drawn(CAT)
    (record,) = (record for record in caplog.records if record.name == fonts.logger.name)
    assert CAT in record.getMessage() and "font=" in record.getMessage() and "\n" not in record.getMessage()
    assert "(CJK)" in record.getMessage() and "apt install fonts-noto-cjk" in record.getMessage()


def test_a_font_of_placeholders_is_not_chosen(system_fonts, caplog):
    """Protects sheets from matplotlib's LastResort, whose glyphs of a script are all the same box."""
    placeholders = list(Path(matplotlib.get_data_path(), "fonts/ttf").glob("LastResort*"))
    if not placeholders:
        pytest.skip("this version of matplotlib has no LastResort")
    system_fonts(fonts._dejavu(), *placeholders)
    with fonts.label_font([CAT]) as of_size:
        assert of_size(10).path == fonts._dejavu()
    assert "(CJK)" in caplog.text


def test_a_font_installed_since_matplotlib_made_its_list(font_file, system_fonts, monkeypatch):
    """Protects who installs the font that the warning asks for."""
    system_fonts(fonts._dejavu())
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(font_file)])
    with fonts.label_font([CAT]) as of_size:
        assert of_size(10).path == str(font_file)


def test_a_font_of_ones_own(font_file, system_fonts, tmp_path):
    """Protects `font=`: it is taken, whatever the computer has; what is no font is named."""
    system_fonts(fonts._dejavu())
    assert not np.array_equal(drawn(CAT, font_file), drawn(DOG, font_file))
    (tmp_path / "no.ttf").write_text("hello")
    with pytest.raises(ValueError, match="no.ttf is not a font file: give a .ttf, .otf or .ttc file"):
        drawn(CAT, tmp_path / "no.ttf")


def test_a_class_has_one_colour():
    """Protects who reads classes from colours, as on the sheets of `visualize-results`."""
    boxes = torch.tensor([[10.0, 10, 100, 200], [300, 10, 400, 200], [500, 10, 600, 200]])
    instances = Instances((480, 640), pred_boxes=Boxes(boxes), pred_classes=torch.tensor([0, 0, 1]))
    metadata = Classes(("cat", "dog"), (1, 2)).metadata()
    image = np.asarray(draw(np.full((480, 640, 3), 255, np.uint8), instances, metadata))
    first, second, third = (tuple(image[195, x]) for x in (10, 300, 500))
    assert first == second != third
