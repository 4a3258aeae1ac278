"""The first commands of README, from a wheel in a folder of its own, against a server on this machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from file_server import serving
from PIL import Image
from small_models import random_file

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "weights.md"
NAME = "align_detr_r50_4scale_12ep"


@pytest.mark.slow
def test_the_first_commands_work_from_a_wheel(tmp_path):
    """A wheel has the catalogue and the configs in it; nothing of the checkout is on the path."""
    (block,) = [
        text for text in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL) if "pip install .\n" in text
    ]
    assert f"align-detr demo --weights zoo:{NAME} --input street.jpg" in block
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*pip, "--target", "site", "./source"], cwd=tmp_path, check=True, timeout=600)
    for name in ("weights/zoo.yaml", "reports/explore.css", "reports/explore.js", "reports/explore_filter.js"):
        assert (tmp_path / "site" / "detrkit" / name).is_file()

    random_file("mmdet_dino", tmp_path / "theirs.pth", num_classes=80)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    (tmp_path / "empty").mkdir()
    Image.fromarray(pixels).resize((160, 120)).save(tmp_path / "empty" / "street.jpg")
    with serving() as server:
        server.files["/small.pth"] = (tmp_path / "theirs.pth").read_bytes()
        entry = {"url": f"{server.url}/small.pth", "config": "dino_tiny"}
        (tmp_path / "zoo.yaml").write_text(json.dumps({NAME: entry}))
        environment = {
            **{key: value for key, value in os.environ.items() if key != "ALIGN_DETR_PLATFORM"},
            "PATH": f"{tmp_path / 'site' / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(tmp_path / "site"),
            "ALIGN_DETR_ZOO": str(tmp_path / "zoo.yaml"),
            "ALIGN_DETR_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        script = f"pip() {{ :; }}\n{block}"
        done = subprocess.run(
            ["bash", "-ec", script],
            cwd=tmp_path / "empty",
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "empty" / "output" / "demo" / "street.png").is_file()
    assert (tmp_path / "cache" / "weights" / NAME / "small.pth").is_file()
