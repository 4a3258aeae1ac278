"""A server and its clients: the detections of `Detector`, a line of JSON for each mistake, an orderly end."""

import http.client
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")

from align_detr import Detector  # noqa: E402
from detrkit.commands import serve  # noqa: E402
from detrkit.serving import app as serving_app  # noqa: E402
from detrkit.serving.app import Options, create_app  # noqa: E402
from detrkit.serving.server import open_socket  # noqa: E402

from ..inference.conftest import write_run  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def running(detector, options):
    """Serve in a thread; yields the port."""
    server = uvicorn.Server(uvicorn.Config(create_app(detector, options), log_level="critical", lifespan="on"))
    with open_socket("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return Detector(write_run(tmp_path_factory.mktemp("served") / "run"), device="cpu")


@pytest.fixture(scope="module")
def port(detector):
    with running(detector, Options(max_bytes=100_000, max_pixels=200_000)) as port:
        yield port


def ask(port, path="/detect", body=None, method="POST", **options):
    """Status and decoded answer of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, **options)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def image_files():
    """Bytes of images of many kinds, with a name for each."""
    random = np.random.default_rng(3)

    def noise(height, width, channels=3):
        small = random.integers(0, 256, (6, 8, channels), np.uint8).squeeze()
        return Image.fromarray(small).resize((width, height))

    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    wide = (np.asarray(noise(72, 96, 1)).astype(np.uint16) << 8) + 255
    return {
        "jpeg": encoded(noise(72, 96), "JPEG"),
        "png": encoded(noise(90, 70), "PNG"),
        "rotated": encoded(noise(72, 96), "JPEG", exif=exif),
        "cmyk": encoded(noise(72, 96, 4).convert("CMYK"), "JPEG"),
        "wide": encoded(Image.fromarray(wide), "PNG"),
        "transparent": encoded(noise(72, 96, 4), "PNG"),
        "palette": encoded(noise(72, 96).quantize(16), "GIF"),
        "tiff": encoded(noise(90, 70), "TIFF"),
        "webp": encoded(noise(90, 70), "WEBP"),
        "bmp": encoded(noise(40, 50), "BMP"),
    }


def check(answer, found):
    """An answer has these detections, to rounding."""
    assert (answer["width"], answer["height"]) == (found.width, found.height)
    listed = answer["detections"]
    assert [entry["label"] for entry in listed] == found.labels
    assert [entry["class"] for entry in listed] == found.classes.tolist()
    np.testing.assert_allclose([entry["box"] for entry in listed], found.boxes, atol=0.02)
    np.testing.assert_allclose([entry["score"] for entry in listed], found.scores, atol=2e-4)


def test_two_hundred_requests_eight_at_a_time(detector, port, tmp_path):
    """None is lost, and each has the detections that `Detector` finds in the file."""
    expected = {}
    for name, content in image_files().items():
        (tmp_path / name).write_bytes(content)
        (expected[name],) = detector(tmp_path / name, 0.25, batch_size=1)
    assert sum(map(len, expected.values())) > 20
    names = [name for _ in range(20) for name in expected]
    with ThreadPoolExecutor(8) as pool:
        path = "/detect?score_threshold=0.25&top=60"
        answers = list(pool.map(lambda name: ask(port, path, (tmp_path / name).read_bytes()), names))
    assert len(answers) == 200
    for name, (status, answer) in zip(names, answers, strict=True):
        assert status == 200 and answer["score_threshold"] == 0.25
        check(answer, expected[name])


def test_defaults_and_top(detector, port):
    body = image_files()["jpeg"]
    (found,) = detector(Image.open(io.BytesIO(body)))
    status, answer = ask(port, body=body)
    assert status == 200 and answer["score_threshold"] == detector.score_threshold
    check(answer, found)
    assert ask(port, "/detect?top=2", body)[1]["detections"] == answer["detections"][:2]
    assert ask(port, "/detect?score_threshold=1", body)[1]["detections"] == []
    with_type = ask(port, body=body, headers={"Content-Type": "application/x-www-form-urlencoded"})  # curl's
    assert with_type == (200, answer)


def png_of(width, height):
    """A PNG that claims a size and holds nothing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


JPEG = image_files()["jpeg"]
DARK = encoded(Image.fromarray(np.full((20, 30), 900, np.uint16)), "PNG")


@pytest.mark.parametrize("path, body, status, message", [
    ("/detect", b"", 400, "the request has no body"),
    ("/detect", b"<html>", 415, "the body is not an image that can be read: expected"),
    ("/detect", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "not an image"),
    ("/detect", JPEG[:300], 422, "the image cannot be read"),
    ("/detect", JPEG[: len(JPEG) // 2], 422, "the image cannot be read: "),
    ("/detect", png_of(40, 40), 422, "the image cannot be read"),
    ("/detect", png_of(500, 401), 413, "500 x 401 pixels: at most 200000"),
    ("/detect", png_of(30000, 30000), 413, "too many pixels: at most 200000"),
    ("/detect", DARK, 422, "its integers have more than 8 bits and end at 900"),
    ("/detect", b"x" * 100_001, 413, "the image file is too large: at most 100000 bytes"),
    ("/detect?treshold=1", JPEG, 400, "there is no parameter treshold: choose from score_threshold and top"),
    ("/detect?score_threshold=1.5", JPEG, 400, "score_threshold=1.5: expected a number from 0 to 1"),
    ("/detect?score_threshold=nan", JPEG, 400, "score_threshold=nan: expected a number from 0 to 1"),
    ("/detect?top=0", JPEG, 400, "top=0: expected a whole number from 1"),
    ("/detect?top=many", JPEG, 400, "top=many: expected a whole number from 1"),
    ("/nothing", JPEG, 404, "POST /nothing: Not Found"),
    ("/health", JPEG, 405, "POST /health: Method Not Allowed"),
    ("/page/../app.py", b"", 404, "Not Found"),
])  # fmt: skip
def test_mistakes_are_one_line(port, path, body, status, message):
    found, answer = ask(port, path, body, "POST" if path != "/page/../app.py" else "GET")
    assert found == status and list(answer) == ["error"]
    assert message in answer["error"] and "\n" not in answer["error"]


def test_more_mistakes(port):
    """A body whose length is not known beforehand, a form, a method."""
    chunks = (b"x" * 60_000 for _ in range(2))
    assert ask(port, body=chunks, headers={"Transfer-Encoding": "chunked"}, encode_chunked=True)[0] == 413
    assert ask(port, body=JPEG, headers={"Content-Type": "multipart/form-data; boundary=x"})[0] == 415
    assert ask(port, method="GET")[0] == 405


@pytest.mark.parametrize("error, reason", [
    (RuntimeError("selected index k out of range"), "its sides are too unequal"),
    (ValueError("height and width\nmust be > 0"), "height and width must be > 0"),
])  # fmt: skip
def test_an_image_that_the_detector_refuses(port, monkeypatch, error, reason):
    """As a strip of 3000 x 1 pixels with a model of many queries: the image is at fault."""

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(Detector, "__call__", refuse)
    status, answer = ask(port, body=JPEG)
    assert status == 422
    assert answer == {"error": f"the detector cannot take an image of 96 x 72 pixels: {reason}"}


def test_a_client_that_goes_away(port):
    """Half an image, and the connection ends: the server goes on."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc")
    assert ask(port, body=JPEG)[0] == 200


def test_too_many_at_once(port, monkeypatch):
    monkeypatch.setattr(serving_app, "MOST_WAITING", 0)
    status, answer = ask(port, body=JPEG)
    assert status == 503 and answer == {"error": "0 requests are in progress: try again later"}
    monkeypatch.undo()
    assert ask(port, body=JPEG)[0] == 200


def test_a_slow_client(port, monkeypatch):
    monkeypatch.setattr(serving_app, "BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc")
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a_failure_is_json_too(detector, monkeypatch):
    """What is not the client's fault is a 500, and the server goes on."""
    with running(detector, Options()) as port:
        with monkeypatch.context() as patch:
            patch.setattr(Detector, "__call__", lambda *_, **__: 1 / 0)
            assert ask(port, body=JPEG) == (500, {"error": "the server failed: its log has the reason"})
        assert ask(port, body=JPEG)[0] == 200


def test_health_and_page(detector, port):
    status, answer = ask(port, "/health", method="GET")
    assert status == 200 and answer["status"] == "ok" and answer["classes"] == detector.class_names
    assert answer["max_bytes"] == 100_000 and answer["score_threshold"] == detector.score_threshold
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for path, kind in {"/": "html", "/page/page.js": "javascript", "/page/page.css": "css"}.items():
        connection.request("GET", path)
        response = connection.getresponse()
        content = response.read().decode()
        assert response.status == 200 and kind in response.headers["Content-Type"], path
        assert "http://" not in content and "https://" not in content  # nothing comes from elsewhere
    connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_an_orderly_end(tmp_path, number):
    """A signal arrives while a client sends its image: it gets its detections, and the exit status is 0."""
    write_run(tmp_path / "run")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "projects")}
    command = [sys.executable, "-m", "align_detr", "serve", str(tmp_path / "run"), "--port", "0", "--device", "cpu"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as server:
        try:
            line = server.stdout.readline()
            port = int(line.rpartition(":")[2])
            assert line.startswith(f"Serving {tmp_path / 'run'} at http://127.0.0.1:")
            assert ask(port, body=JPEG)[0] == 200
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(JPEG)}\r\n\r\n".encode()
                client.sendall(head + JPEG[:100])
                time.sleep(0.3)  # the request has begun
                server.send_signal(number)
                time.sleep(0.5)
                client.sendall(JPEG[100:])
                assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
            assert server.wait(30) == 0
            assert "Traceback" not in server.stderr.read()
        finally:
            server.kill()


@pytest.mark.parametrize("words, message", [
    (["nothing"], "no such file or folder: nothing"),
    (["run", "--batch-size", "0"], "--batch-size 0: at least 1"),
    (["run", "--max-wait", "-1"], "--max-wait -1: expected 0 to 10000 milliseconds"),
    (["run", "--score-threshold", "2"], "argument --score-threshold: 2: expected a score from 0 to 1"),
    (["run", "--port", "70000"], "cannot listen on 127.0.0.1, port 70000: "),
    (["run", "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid, port 8000: "),
])  # fmt: skip
def test_mistakes_on_the_command_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    with pytest.raises(SystemExit):
        serve.main(words)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_a_port_in_use(tmp_path, port, capsys):
    with pytest.raises(SystemExit):
        serve.main([str(tmp_path), "--port", str(port)])
    expected = f"error: port {port} of 127.0.0.1 is in use: choose another --port, or 0 for any free one\n"
    assert capsys.readouterr().err == expected


def test_without_the_packages(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        serve.main([str(tmp_path)])
    packages = "error: `align-detr serve` needs packages, starlette and uvicorn"
    expected = f'{packages}: pip install ".[serve]" in a clone of this project\n'
    assert capsys.readouterr().err == expected
