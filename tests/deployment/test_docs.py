"""docs/deploying.md: its blocks are run, one after the other, in a folder with a training and two pictures."""

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from align_detr.config import EMBEDDED_ROOT

from .conftest import write_run

ROOT = EMBEDDED_ROOT.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_page_on_deploying(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGN_DETR_PLATFORM", raising=False)
    write_run(tmp_path / "output/align_detr_tiny")
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    for name in ("street.jpg", "cells.png", "pictures/1.png"):
        pixels = random.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((160, 120)).save(tmp_path / name)
    names: dict = {}
    kinds = []
    for kind, text in BLOCK.findall((ROOT / "docs/deploying.md").read_text(encoding="utf-8")):
        kinds.append(kind)
        if kind == "python":
            exec(compile(text, "docs/deploying.md", "exec"), names)
            continue
        for line in text.splitlines():
            if line.startswith("pip install"):
                continue
            assert line.startswith("python tools/"), line
            words = [sys.executable, str(ROOT / line.split()[1]), *shlex.split(line)[2:]]
            done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
            assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    assert kinds.count("python") == 6 and kinds.count("bash") == 3
    assert (tmp_path / "drawn.png").is_file() and (tmp_path / "drawn/street.png").is_file()
    assert len(names["results"]) == len(names["found"].to_coco(0)) * 2
