"""The demo on every kind of image, good and bad, with a detector of random weights."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

from align_detr._platform import EMBEDDED_ROOT
from detrkit.config.load import get_config
from detrkit.inference import demo

TOOLS = EMBEDDED_ROOT.parent / "tools"
CONFIG = str(EMBEDDED_ROOT.parent / "configs/baselines/dino_tiny.py")
SMALL = (
    "model.transformer.encoder.num_layers=1",
    "model.num_queries=20",
    "model.transformer.two_stage_num_proposals=20",
    "model.select_box_nums_for_evaluation=60",
    "dataloader.test.mapper.augmentation.0.short_edge_length=48",
    "train.device=cpu",
)
EVERYTHING = ("--score-threshold", "0")


@pytest.fixture
def tool(monkeypatch, tmp_path):
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path / "no_data"))
    from detrkit.commands import demo

    return demo


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    cfg = get_config("baselines/dino_tiny.py")
    cfg.train.device = "cpu"
    cfg.model.transformer.encoder.num_layers = 1
    cfg.model.num_queries = cfg.model.transformer.two_stage_num_proposals = 20
    cfg.model.select_box_nums_for_evaluation = 60
    model = instantiate(cfg.model)
    with torch.no_grad():  # the box heads start at zero: all layers would agree
        for head in model.bbox_embed:
            torch.nn.init.normal_(head.layers[-1].weight, std=0.3)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def run(tool, checkpoint, tmp_path):
    """`run(inputs, *options)` gives the exit status, the JSON, and the names of the pictures."""

    def run(inputs, *options, weights=checkpoint):
        output, results = tmp_path / "out", tmp_path / "results.json"
        options = ["--checkpoint", weights, "--output", output, "--json", results, *options]
        with pytest.raises(SystemExit) as stop:
            tool.main(["--config-file", CONFIG, *map(str, options), "--input", *map(str, inputs), *SMALL])
        entries = json.loads(results.read_text(encoding="utf-8")) if results.exists() else None
        return stop.value.code, entries, sorted(path.name for path in output.glob("*"))

    return run


def gradient(height=48, width=72):
    """RGB, brighter to the right and to the bottom."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], axis=-1).astype(np.uint8)


@pytest.fixture
def odd_images(tmp_path):
    """One image of every kind, in a folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    picture = Image.fromarray(gradient())
    picture.save(folder / "grüße 猫 #1 [2].png")
    picture.save(folder / "plain.jpg")
    picture.convert("L").save(folder / "grey.png")
    picture.convert("1").save(folder / "bits.png")
    picture.quantize().save(folder / "palette.gif")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("LA").save(folder / "grey_alpha.png")
    sixteen = (np.asarray(picture.convert("L")).astype(np.uint16) << 8) + 77
    Image.fromarray(sixteen).save(folder / "sixteen.png")
    Image.fromarray(sixteen).save(folder / "sixteen.tif")
    transparent = picture.convert("RGBA")
    transparent.putalpha(Image.fromarray(np.where(np.arange(72) < 36, 255, 0).astype(np.uint8)[None].repeat(48, 0)))
    transparent.save(folder / "half.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    picture.save(folder / "turned.jpg", exif=exif, quality=95)
    (folder / "notes.txt").write_text("not an image, and not meant as one")
    return folder


def test_pixels(tool, odd_images):
    """Every kind of file is seen as a viewer shows it."""
    grey = np.asarray(Image.fromarray(gradient()).convert("L"))[..., None].repeat(3, -1)
    expected = {
        "grüße 猫 #1 [2].png": gradient(),
        "plain.jpg": gradient(),
        "grey.png": grey,
        "grey_alpha.png": grey,
        "sixteen.png": grey,
        "sixteen.tif": grey,
        "cmyk.jpg": gradient(),
        "palette.gif": gradient(),
        "turned.jpg": np.rot90(gradient(), -1),
        "half.png": np.where(np.arange(72)[:, None] < 36, gradient(), 255),
    }
    for name, pixels in expected.items():
        found = demo.read_image(odd_images / name)
        assert found.dtype == np.uint8 and found.shape == pixels.shape, name
        assert np.abs(found.astype(int) - pixels).mean() < 6, name  # palettes and JPEG are not exact
    assert set(np.unique(demo.read_image(odd_images / "bits.png"))) == {0, 255}


def test_every_kind_of_image(run, odd_images):
    """A picture and detections within the image for each; the rotated one's are those of the rotated image."""
    status, entries, pictures = run([odd_images], *EVERYTHING)
    assert status == 0
    names = sorted(path.stem for path in odd_images.iterdir() if path.suffix != ".txt")
    assert sorted(name.removesuffix(".png").removesuffix("_2") for name in pictures) == names
    assert {entry["file_name"] for entry in entries} == {
        str(path) for path in odd_images.iterdir() if path.suffix != ".txt"
    }
    for entry in entries:
        x, y, width, height = entry["bbox"]
        size = (48, 72) if entry["file_name"].endswith("turned.jpg") else (72, 48)
        assert x >= 0 and y >= 0 and x + width <= size[0] + 1e-3 and y + height <= size[1] + 1e-3
        assert 0 <= entry["score"] <= 1 and entry["category_id"] in (1, 2, 3)


def test_files_that_cannot_be_read(run, odd_images, tmp_path, capsys):
    """They are named, the others are done, and the exit status tells."""
    (odd_images / "broken.jpg").write_bytes((odd_images / "plain.jpg").read_bytes()[:300])
    (odd_images / "text.png").write_text("hello")
    status, entries, pictures = run([odd_images, tmp_path / "nowhere.jpg", "none/*.png"], *EVERYTHING)
    assert status == 1
    assert len(pictures) == 11 and len({entry["file_name"] for entry in entries}) == 11
    problems = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out ")]
    assert len(problems) == 4
    for name in ("broken.jpg", "text.png", "nowhere.jpg", "none/*.png"):
        assert sum(name in line for line in problems) == 1


def test_batches_do_not_change_detections(run, odd_images):
    """Images of two sizes, one by one and together; globs and repeated files; ids follow the order of inputs."""
    files = [odd_images / "*.png", odd_images / "turned.jpg", odd_images / "grey.png"]
    _, alone, _ = run(files, *EVERYTHING, "--batch-size", 1)
    _, together, _ = run(files, *EVERYTHING, "--batch-size", 5)
    assert len({entry["file_name"] for entry in alone}) == 7
    assert [entry["image_id"] for entry in alone] == sorted(entry["image_id"] for entry in alone)
    for a, b in zip(alone, together, strict=True):
        assert a["file_name"] == b["file_name"]
        assert a["score"] == pytest.approx(b["score"], abs=1e-4)


def test_selection_and_layers(run, odd_images):
    """--top and --score-threshold cut, --layer shows another layer, the last by default."""
    image = [odd_images / "plain.jpg"]
    _, everything, _ = run(image, *EVERYTHING)
    scores = [entry["score"] for entry in everything]
    assert scores == sorted(scores, reverse=True) and len(scores) > 10
    _, top, _ = run(image, *EVERYTHING, "--top", 3)
    assert top == everything[:3]
    _, above, _ = run(image, "--score-threshold", (scores[4] + scores[5]) / 2)
    assert above == everything[:5]
    _, last, _ = run(image, *EVERYTHING, "--layer", 3)
    _, first, _ = run(image, *EVERYTHING, "--layer", 1)
    assert last == everything != first


def test_weights_from_safetensors(run, odd_images, checkpoint, tmp_path):
    """An exported file gives what the checkpoint gives."""
    safetensors = pytest.importorskip("safetensors.torch")
    state = torch.load(checkpoint, weights_only=True)["model"]
    exported = tmp_path / "model.safetensors"
    safetensors.save_file({name: value.clone() for name, value in state.items()}, exported)
    image = [odd_images / "plain.jpg"]
    assert run(image, *EVERYTHING, weights=exported) == run(image, *EVERYTHING)


def test_names_of_pictures_and_images(tool, tmp_path):
    """Equal names do not overwrite each other, nor an input; COCO's numbers are the ids where all have one."""
    a, b, c = tmp_path / "a" / "1.png", tmp_path / "b" / "1.jpg", tmp_path / "b" / "000000000022.jpg"
    out = tmp_path / "out"
    assert demo.output_paths([a, b, c], out) == {
        a: out / "1.png",
        b: out / "1_2.png",
        c: out / "000000000022.png",
    }
    with pytest.raises(ValueError, match="would be overwritten"):
        demo.output_paths([a], tmp_path / "a")
    assert demo.image_ids([b, c]) == {b: 1, c: 22}
    assert demo.image_ids([a, b, c]) == {a: 1, b: 2, c: 3}
    assert demo.image_ids([c, tmp_path / "x.png"]) == {c: 1, tmp_path / "x.png": 2}


def test_mistakes(run, odd_images, tmp_path, capsys):
    """One line for what is wrong."""
    image = [odd_images / "plain.jpg"]

    def error(*arguments, **kwargs):
        status, _, _ = run(image, *arguments, **kwargs)
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
        assert status == 1
        return line

    assert error("--layer", 4) == "error: --layer=4, but the decoder's layers are 1 to 3"
    assert "at least 1" in error("--top", 0)
    assert error(weights="nowhere.pth") == "error: no such checkpoint: nowhere.pth"
    broken = tmp_path / "broken.safetensors"
    broken.write_text("hello")
    assert "is no file of weights" in error(weights=broken)
