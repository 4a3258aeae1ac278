"""The package huggingface_hub itself, against a server on this machine: a detector goes up and comes down again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import write_run
from .hub_server import serving_hub

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).resolve().parents[3]
# The package reads its address when it is imported, so each program is a process of its own.
PROGRAM = """
import sys
import numpy as np
from align_detr import Detector
from detrkit.commands import push

run, repository = sys.argv[1:]
push.main([run, repository, "--private"])
image = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8)
(expected,) = Detector(run, device="cpu")(image, 0.05)
for options in ({}, {"revision": "main"}):
    (found,) = Detector.from_pretrained(repository, device="cpu", **options)(image, 0.05)
    assert len(found) > 3 and np.array_equal(found.boxes, expected.boxes) and found.labels == expected.labels
for name, revision in ((repository, "v9"), ("user/none", None)):
    try:
        Detector.from_pretrained(name, revision=revision)
    except OSError as error:
        print("error:", error)
"""


@pytest.fixture
def program(tmp_path):
    """`program(hub, token)` runs PROGRAM; returns its exit status, output and errors."""
    run = write_run(tmp_path / "run")

    def start(hub, token):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "projects")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": token}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        words = [sys.executable, "-c", PROGRAM, str(run), "user/cells"]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
        return done.returncode, done.stdout, done.stderr

    return start


def test_up_and_down(program, tmp_path):
    """The command uploads, and `from_pretrained` finds the same; what is not there is one line."""
    with serving_hub() as hub:
        status, output, errors = program(hub, hub.token)
        assert status == 0, errors
        assert output.splitlines()[0] == f"{hub.url}/user/cells"
        assert hub.private == {"user/cells": True}
        files = hub.files["user/cells"]
        assert {"README.md", "config.json", "model.safetensors"} <= set(files)
        assert 'Detector.from_pretrained("user/cells")' in files["README.md"].decode()
        assert json.loads(files["config.json"])["library_name"] == "align-detr"
        assert len(hub.objects) == 1  # the weights went up as a large file
        lines = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(lines) == 2
        assert lines[0].startswith("error: cannot download hf://user/cells@v9/model.safetensors: ")
        assert lines[1].startswith("error: cannot download hf://user/none/model.safetensors: ")
        assert all(f"fetch {hub.url}/user/" in line for line in lines)


def test_a_wrong_token(program):
    with serving_hub() as hub:
        status, _, errors = program(hub, "wrong")
        assert status == 1 and hub.files == {}
        (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert line.startswith("error: cannot upload to user/cells: ") and "`hf auth login`" in line
        assert "401" in line
