"""`Detector` and `Detections`: the same detections as evaluation's, for any kind and number of pictures."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import transforms as T
from PIL import Image

import align_detr
from align_detr import Detector
from detrkit.inference import detector as module
from detrkit.inference import pytorch

from .conftest import random_weights, small_config, write_run


@pytest.fixture(scope="module")
def detector(run_folder):
    return Detector(run_folder, device="cpu", class_names=["cat", "dog", "bird"])


def test_it_is_imported_when_asked_for():
    """`import align_detr` stays cheap: configs, tools and data workers import it all the time."""
    code = f"import sys; sys.path.insert(0, {str(Path(align_detr.__file__).parents[1])!r}); import align_detr; "
    code += "assert 'torch' not in sys.modules; align_detr.Detector; assert 'torch' in sys.modules"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    with pytest.raises(AttributeError, match="has no attribute 'Detctor'"):
        align_detr.Detctor  # noqa: B018


def test_detections_are_those_of_the_model(detector, run_folder, pictures):
    """What evaluation would get for the picture, above the threshold, in the picture's own pixels."""
    cfg = LazyConfig.load(str(run_folder / "config.yaml"))
    model = instantiate(cfg.model).eval()
    model.load_state_dict(torch.load(run_folder / "model_final.pth", weights_only=True)["model"])
    augmentation = T.AugmentationList(instantiate(cfg.dataloader.test.mapper.augmentation))
    (found,) = detector(pictures[0], 0.15)
    seen = T.AugInput(pictures[0])
    augmentation(seen)
    image = torch.from_numpy(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))
    with torch.no_grad():
        expected = model([{"image": image, "height": 90, "width": 70}])[0]["instances"]
    expected = expected[expected.scores >= 0.15]
    assert 3 < len(found) == len(expected) < 60
    assert np.allclose(found.boxes, expected.pred_boxes.tensor, atol=1e-3)
    assert np.allclose(found.scores, expected.scores, atol=1e-5)
    assert found.classes.tolist() == expected.pred_classes.tolist()
    assert found.labels == [["cat", "dog", "bird"][index] for index in found.classes]
    assert (found.height, found.width) == (90, 70)


def test_the_allocator_belongs_to_the_host_program(run_folder, run_python):
    """Only commands change how the process frees memory."""
    program = """
import sys
from align_detr import Detector
Detector(sys.argv[1], device="cpu")
print("detrkit.runtime.allocation" in sys.modules)
"""
    assert run_python("-c", program, run_folder).stdout.split()[-1:] == ["False"]


def test_order_and_batches(detector, pictures, monkeypatch):
    """Results come in the order of the pictures, whichever of them share a batch, and are what each has on its own."""
    sizes = []
    detect = detector._network.detect
    monkeypatch.setattr(
        detector._network, "detect", lambda images, *rest: (sizes.append(len(images)), detect(images, *rest))[1]
    )
    alone = [next(detector(picture, 0)) for picture in pictures]
    sizes.clear()
    together = list(detector(pictures, 0, batch_size=4))
    assert sizes == [4, 3]  # of seven in turns of two sizes
    for number, (a, b) in enumerate(zip(alone, together, strict=True)):
        assert np.array_equal(b.pixels, pictures[number]) and b.name == f"picture {number}"
        assert np.allclose(a.scores, b.scores, atol=1e-4)
        # Equal scores may come in either order.
        assert np.allclose(a.boxes.sum(0), b.boxes.sum(0), atol=0.1)


def test_pictures_are_read_as_results_are_taken(detector, pictures):
    """Thousands of pictures need the memory of a few."""
    taken = []

    def source():
        for number in range(1000):
            taken.append(number)
            yield pictures[number % 7]

    results = detector(source(), batch_size=2)
    assert not taken
    next(results)
    assert len(taken) == module.WINDOW * 2
    results = detector(source(), batch_size=1)
    taken.clear()
    next(results)
    assert len(taken) == 1  # a camera does not wait


def test_kinds_of_pictures(detector, pictures, tmp_path):
    """Files, PIL images, arrays of both channel orders, grey ones and those that EXIF turns are the same picture."""
    pixels = pictures[0]
    exif = Image.Exif()
    exif[0x0112] = 8  # stored turned clockwise, to be turned back
    Image.fromarray(np.rot90(pixels, -1)).save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    same = [pixels, Image.fromarray(pixels), tmp_path / "turned.png", str(tmp_path / "turned.png"), turned, opaque]
    results = list(detector(same, 0.2)) + list(detector([pixels[..., ::-1]], 0.2, channel_order="BGR"))
    for found in results:
        assert np.array_equal(found.pixels, pixels)
        assert np.allclose(found.boxes, results[0].boxes, atol=1e-2)
    assert results[3].name == str(tmp_path / "turned.png")
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    a, b = detector([grey, grey[..., None]], 0.2)
    assert np.array_equal(a.pixels, b.pixels) and np.array_equal(a.pixels[..., 0], grey)


def test_what_is_no_picture(detector, pictures, tmp_path, caplog):
    """One line that names it, after the results of those before it; or it is left out."""
    (tmp_path / "broken.jpg").write_bytes(b"hello")
    results = detector([pictures[0], tmp_path / "broken.jpg", pictures[1]])
    assert next(results).name == "picture 0"
    with pytest.raises(ValueError, match="broken.jpg cannot be read: cannot identify image file"):
        next(results)
    results = list(detector([pictures[0], tmp_path / "broken.jpg", pictures[1]], skip_unreadable=True))
    assert [found.name for found in results] == ["picture 0", "picture 2"]
    assert "left out: " in caplog.text
    for wrong, said in [
        (pictures[0].astype(np.float32), r"shape \(90, 70, 3\) and float32: a picture is"),
        (np.zeros((3, 90, 70), np.uint8), r"an array of shape \(3, 90, 70\)"),
        (tmp_path, "is a folder: give its files"),
        ([3], "not a int"),
    ]:
        with pytest.raises(ValueError, match=said):
            list(detector(wrong))
    with pytest.raises(ValueError, match="channel_order='GBR' is none of RGB, BGR"):
        detector(pictures, channel_order="GBR")
    with pytest.raises(ValueError, match="batch_size=0"):
        detector(pictures, batch_size=0)


def test_coco_entries_and_drawing(detector, pictures):
    """Boxes as corner and size, categories as in the annotations; a drawn picture is large enough to read."""
    (found,) = detector(pictures[1], 0.2)
    entries = found.to_coco(image_id=7)
    assert len(entries) == len(found) > 0
    for entry, box, index in zip(entries, found.boxes.tolist(), found.classes, strict=True):
        left, top, width, height = entry["bbox"]
        assert [left, top, left + width, top + height] == pytest.approx(box, abs=1e-3)
        assert entry["image_id"] == 7 and entry["category_id"] == index + 1
    picture = found.draw()
    assert picture.size == (480, 360)
    assert not np.array_equal(np.asarray(picture), np.asarray(Image.fromarray(pictures[1]).resize(picture.size)))
    (nothing,) = detector(pictures[1], 1.0)
    assert len(nothing) == 0 and nothing.to_coco(1) == [] and nothing.boxes.shape == (0, 4) and nothing.draw()


def test_supervision(detector, pictures):
    supervision = pytest.importorskip("supervision")
    (found,) = detector(pictures[1], 0.2)
    detections = found.to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == len(found)
    assert list(detections["class_name"]) == found.labels
    assert len(next(detector(pictures[1], 1.0)).to_supervision()) == 0


def test_supervision_that_is_not_there(detector, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        next(detector(pictures[1])).to_supervision()


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_mixed_precision(run_folder, pictures, dtype, monkeypatch):
    """Scores change in the third digit; results are float32 still."""
    monkeypatch.setattr(pytorch, "autocast_is_faster", lambda dtype, device: True)  # whatever CPU this is
    (exact,) = Detector(run_folder, device="cpu")(pictures[0], 0)
    (found,) = Detector(run_folder, device="cpu", dtype=dtype)(pictures[0], 0)
    assert found.scores.dtype == found.boxes.dtype == np.float32
    assert np.allclose(np.sort(found.scores)[-5:], np.sort(exact.scores)[-5:], atol=0.05)
    assert not np.array_equal(found.scores, exact.scores)


def test_a_cpu_without_units_for_bfloat16_computes_in_float32(run_folder, pictures, monkeypatch, caplog):
    """Which is faster there; it is said, once."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    (exact,) = Detector(run_folder, device="cpu")(pictures[0], 0)
    (found,) = Detector(run_folder, device="cpu", dtype="bfloat16")(pictures[0], 0)
    assert np.array_equal(found.scores, exact.scores)
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "This CPU has no units for bfloat16: float32 is faster, and used instead"
    ]


def test_names_of_classes(tmp_path, run_folder):
    """Those given, those that the training left in its checkpoint, those of the dataset, or numbers."""
    assert Detector(run_folder, device="cpu", class_names=["a", "b", "c"]).class_names == ["a", "b", "c"]
    folder = write_run(tmp_path / "run")
    content = torch.load(folder / "model_final.pth", weights_only=True)
    facts = {"classes": [[5, "red"], [9, "green"]]}  # a dataset of fewer classes than outputs
    torch.save({**content, "trainer": {"hooks": {"RunState": {"facts": facts}}}}, folder / "model_final.pth")
    detector = Detector(folder, device="cpu")
    assert detector.class_names == ["red", "green", "2"]
    found = next(detector(np.zeros((64, 64, 3), np.uint8), 0))
    assert {entry["category_id"] for entry in found.to_coco(1)} <= {5, 9, 10}
    cfg = small_config()
    cfg.dataloader.test.dataset.names = "coco_2017_val"
    cfg.model.num_classes = 80
    torch.save({"model": random_weights(cfg)}, tmp_path / "coco.pth")
    coco = Detector(config=cfg, weights=tmp_path / "coco.pth", device="cpu")
    assert coco.class_names[0] == "person" and len(coco.class_names) == 80
    cfg.dataloader.test.dataset.names = cfg.dataloader.train.dataset.names = "nowhere"
    assert Detector(config=cfg, weights=tmp_path / "coco.pth", device="cpu").class_names[79] == "79"


def test_where_a_detector_comes_from(tmp_path, run_folder, pictures):
    """A folder, a config and weights, other weights of the folder; each gives the same."""
    folder = write_run(tmp_path / "run")
    (folder / "model_final.pth").rename(folder / "model_0000003.pth")
    with pytest.raises(FileNotFoundError, match="has no weights yet"):
        Detector(folder)
    (folder / "last_checkpoint").write_text("model_0000003.pth")
    both = {"config": run_folder / "config.yaml", "weights": str(run_folder / "model_final.pth")}
    detectors = [
        Detector(str(folder), device="cpu"),
        Detector(folder, weights=folder / "model_0000003.pth", device="cpu"),
        Detector(**both, device="cpu"),
    ]
    (first, *others) = [next(detector(pictures[0])).scores for detector in detectors]
    assert all(np.array_equal(first, scores) for scores in others)


def test_mistakes(tmp_path, run_folder):
    """One line for each: what, where, what to do."""
    cfg = small_config()
    state = random_weights(cfg)
    state.pop("neck.convs.0.conv.weight")
    torch.save({"model": state}, tmp_path / "less.pth")
    cases = [
        ({"source": tmp_path / "nowhere"}, FileNotFoundError, "no such folder or file"),
        ({"source": tmp_path}, FileNotFoundError, "has no config.yaml"),
        ({"source": tmp_path / "less.pth"}, ValueError, "holds weights alone: give the folder of its training, or its"),
        ({"source": run_folder, "config": cfg}, ValueError, "has a config of its own"),
        ({"config": cfg}, ValueError, "needs the folder of a training, an exported file, or both"),
        ({"config": cfg, "weights": tmp_path / "less.pth"}, ValueError, "lacks 1 of the model's tensors: neck.convs.0"),
        ({"config": cfg, "weights": tmp_path / "no.pth"}, FileNotFoundError, "no such checkpoint"),
        ({"source": run_folder, "device": "cuda:77"}, ValueError, "device=cuda:77 is not available"),
        ({"source": run_folder, "dtype": "int8"}, ValueError, "dtype=int8 is none of float32, float16, bfloat16"),
    ]
    for arguments, kind, said in cases:
        with pytest.raises(kind, match=said) as error:
            Detector(**arguments)
        assert "\n" not in str(error.value)
