"""Films in, films with boxes and lines of JSON out; broken ones keep what was written."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.commands import demo
from detrkit.inference import detector as detector_module
from detrkit.inference import film as film_module

from .blobs import Blobs, draw

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # OpenCV reads it once; the tests write films before the demo
cv2 = pytest.importorskip("cv2")
HEIGHT, WIDTH = 120, 160


def objects_at(frame):
    """A red rectangle that goes right, a green one that goes left."""
    return [(0, 5 + 3 * frame, 20, 35 + 3 * frame, 50), (1, 110 - 2 * frame, 70, 150 - 2 * frame, 100)]


def pixels_at(frame):
    return draw(HEIGHT, WIDTH, objects_at(frame))


def write_film(path, frames=24, codec="MJPG", rate=10, size=(WIDTH, HEIGHT)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, size)
    assert writer.isOpened()
    for frame in range(frames):
        writer.write(cv2.resize(pixels_at(frame % 24), size)[..., ::-1])
    writer.release()
    return path


def read_film(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1][..., ::-1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """`run(input, *options)` gives the exit status, the lines of JSON of the first film, and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detector_module, "open_graph", lambda *_: Blobs())
    Path("blobs.onnx").touch()

    def run(*words):
        with pytest.raises(SystemExit) as end:
            demo.main(["blobs.onnx", "--output", "out", *map(str, words)])
        files = sorted(Path("out").glob("*.jsonl"))
        lines = [json.loads(line) for line in files[0].read_text().splitlines()] if files else None
        return end.value.code, lines, capfd.readouterr()

    return run


def boxes_of(line):
    return sorted((entry["class"], *entry["box"]) for entry in line["detections"])


def check_lines(lines, rate=10.0, tolerance=3):
    for frame, line in enumerate(lines):
        assert (line["frame"], line["seconds"]) == (frame, pytest.approx(frame / rate, abs=1e-3))
        np.testing.assert_allclose(boxes_of(line), objects_at(frame), atol=tolerance)  # the codec smooths edges


def test_a_film(run):
    """Each frame has its line and its drawing, in order; the output is a film of the same rate."""
    write_film("film.avi")
    status, lines, printed = run("--input", "film.avi")
    assert status == 0 and len(lines) == 24
    assert printed.out == "film.avi: 48 detections in 24 frames: out/film.jsonl and out/film.webm\n"
    assert printed.err == ""
    check_lines(lines)
    assert lines[0]["detections"][0].keys() == {"box", "score", "class", "label"}
    frames, rate = read_film("out/film.webm")
    assert len(frames) == 24 and rate == pytest.approx(10, rel=0.01)
    assert frames[0].shape == (360, 480, 3)  # small frames are enlarged, as small images are
    left, top, right, bottom = (3 * side for side in objects_at(10)[0][1:])
    inside = frames[10][top + 15 : bottom - 15, left + 15 : right - 15].reshape(-1, 3)
    assert np.abs(np.median(inside, axis=0) - (220, 20, 20)).max() < 60
    original = cv2.resize(pixels_at(10), (480, 360), interpolation=cv2.INTER_NEAREST).astype(int)
    changed = np.abs(frames[10].astype(int) - original).max(axis=2) > 90
    assert 0.01 < changed.mean() < 0.3  # boxes and labels


def test_films_take_the_options_of_graphs(run, monkeypatch):
    """Protects who asks for a runtime and gets another one without a word."""
    given = []
    monkeypatch.setattr(detector_module, "open_graph", lambda *options: given.append(options) or Blobs())
    write_film("film.avi", 2)
    status, _, _ = run("--input", "film.avi", "--no-pictures", "--runtime", "openvino", "--dtype", "bfloat16")
    assert status == 0 and given == [("blobs.onnx", "openvino", "auto", "bfloat16")]


def test_a_folder_of_frames(run):
    """Frames are taken in the order of their numbers."""
    Path("frames").mkdir()
    for frame in range(12):
        Image.fromarray(pixels_at(frame)).save(f"frames/{frame}.png")
    status, lines, printed = run("--input", "frames", "--frame-rate", "25", "--no-pictures")
    assert status == 0 and len(lines) == 12 and not Path("out/frames.webm").exists()
    check_lines(lines, rate=25.0, tolerance=0)


def test_thresholds_and_tiles(run):
    write_film("film.avi", 3)
    assert run("--input", "film.avi", "--top", "1")[2].out.startswith("film.avi: 3 detections")
    assert run("--input", "film.avi", "--score-threshold", "1")[2].out.startswith("film.avi: 0 detections")
    status, lines, _ = run("--input", "film.avi", "--tile", "64")
    assert status == 0
    check_lines(lines)


def test_tracks(run):
    """Each object has one number, in all frames but the first."""
    pytest.importorskip("trackers")
    write_film("film.avi")
    status, lines, _ = run("--input", "film.avi", "--track")
    assert status == 0
    check_lines(lines)
    numbers = {entry["class"]: set() for entry in lines[0]["detections"]}
    for line in lines[1:]:
        for entry in line["detections"]:
            numbers[entry["class"]].add(entry["track"])
    assert {entry["track"] for entry in lines[0]["detections"]} == {None}
    assert all(len(found) == 1 for found in numbers.values()) and numbers[0] != numbers[1]


def test_a_film_that_breaks_off(run):
    """Its first part is done and kept; one line says how far it went."""
    content = write_film(Path("film.avi"), 100).read_bytes()
    Path("film.avi").write_bytes(content[: len(content) // 2])
    status, lines, printed = run("--input", "film.avi", "--batch-size", "4")
    assert status == 1 and 30 < len(lines) < 60
    check_lines(lines[:24])
    message = f"film.avi is damaged: {len(lines)} of its 100 frames can be read; what was found until there is kept"
    assert printed.err == f"error: {message}\n"
    assert len(read_film("out/film.webm")[0]) == len(lines)


def test_a_broken_frame_in_a_folder(run):
    Path("frames").mkdir()
    for frame in range(10):
        Image.fromarray(pixels_at(frame)).save(f"frames/{frame}.png")
    Path("frames/7.png").write_bytes(Path("frames/7.png").read_bytes()[:60])
    status, lines, printed = run("--input", "frames", "--frame-rate", "5")
    assert status == 1 and len(lines) == 7 and len(read_film("out/frames.webm")[0]) == 7
    assert printed.err.startswith("error: frames/7.png cannot be read: ") and printed.err.count("\n") == 1


def test_an_interruption_keeps_what_was_written(run, monkeypatch):
    write_film("film.avi", 24)
    drawn, draw_boxes = [], film_module.draw_boxes

    def interrupted(*arguments):
        if len(drawn) == 20:
            raise KeyboardInterrupt
        drawn.append(draw_boxes(*arguments))
        return drawn[-1]

    monkeypatch.setattr(film_module, "draw_boxes", interrupted)
    status, lines, _ = run("--input", "film.avi")
    assert status == 130 and len(lines) == 21 and len(read_film("out/film.webm")[0]) == 20


@pytest.mark.parametrize("words, message", [
    (["--input", "none.mp4"], "no such film: none.mp4"),
    (["--input", "text.mp4"], "text.mp4 is not a film that can be read: it is damaged, or of an unknown format"),
    (["--input", "text.mp4", "image.png"], "image.png is not a film, but text.mp4 is: give films and images in "
     "separate calls"),
    (["--input", "text.mp4", "--json", "x"], "--json and --layer are for images: detections in films are in "
     "NAME.jsonl of --output"),
    (["--input", "image.png", "--track"], "--track and --frame-rate are for films: give a film, or a folder and "
     "--frame-rate"),
    (["--input", "text.mp4", "--tta"], "blobs.onnx is a fixed graph: it takes no other weights, no --layer, no --tta "
     "and no key=value"),
    (["--input", "empty", "--frame-rate", "5"], "empty has no image"),
    (["--input", "empty", "--frame-rate", "0"], "--frame-rate 0: expected more than 0, at most 1000"),
    (["--input", "text.mp4", "empty/text.mp4"], "two films are called text: choose another output for each of them"),
    (["--input", "out/same.webm"], "out/same.webm is among the inputs and would be overwritten: choose another "
     "output"),
])  # fmt: skip
def test_mistakes_end_in_one_line(run, words, message):
    Path("text.mp4").write_text("no film")
    Path("empty").mkdir()
    Path("empty/text.mp4").write_text("no film")
    Path("out").mkdir()
    Path("out/same.webm").touch()
    Image.fromarray(pixels_at(0)).save("image.png")
    status, _, printed = run(*words)
    assert status == 1 and printed.err == f"error: {message}\n"


@pytest.mark.parametrize("package, words, message", [
    ("cv2", [], 'films need a package, OpenCV: pip install ".[video]" in a clone of this project'),
    ("trackers", ["--track"], '--track needs a package, trackers: pip install ".[track]" in a clone of this project'),
])  # fmt: skip
def test_without_the_packages(run, monkeypatch, package, words, message):
    write_film("film.avi", 2)
    monkeypatch.setitem(sys.modules, package, None)
    status, _, printed = run("--input", "film.avi", *words)
    assert status == 1 and printed.err == f"error: {message}\n"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_film(run, monkeypatch):
    """300 frames of 2.8 MB: all of them together would be 830 MB."""
    pages = []

    class Writer(film_module.FilmWriter):
        def write(self, frame):
            super().write(frame)
            pages.append(int(Path("/proc/self/statm").read_text().split()[1]))

    monkeypatch.setattr(film_module, "FilmWriter", Writer)
    write_film("film.avi", 300, size=(1280, 720))
    status, lines, _ = run("--input", "film.avi")
    assert status == 0 and len(lines) == len(pages) == 300
    used = np.array(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6
    assert used[-100:].max() < used[50:100].max() + 60  # MB
