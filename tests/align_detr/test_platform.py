"""Real packages win, the embedded engine fills only what is missing; each case in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BARE = pytest.mark.engine("of an interpreter that has neither detectron2 nor detrex")
PROBE = """
import importlib.util, json, sys
sys.path.insert(0, sys.argv[1])
import align_detr
from align_detr._platform import describe
names = ["detectron2", "detrex", "projects.dino.modeling", "projects.dab_detr.modeling"]
print(json.dumps({n: importlib.util.find_spec(n).origin for n in names} | {"line": describe()}))
"""


def probe(*path, platform=None, code=PROBE):
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "ALIGN_DETR_PLATFORM")}
    env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    if platform is not None:
        env["ALIGN_DETR_PLATFORM"] = platform
    return subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "projects")], env=env, capture_output=True, text=True, cwd="/"
    )


def origins(*path, platform=None):
    """Return the source of each package, "embedded" or "real", and the start-up line."""
    done = probe(*path, platform=platform)
    assert done.returncode == 0, done.stderr
    sources = json.loads(done.stdout)
    line = sources.pop("line")
    embedded = str(ROOT / "embedded")
    return {n: "embedded" if o.startswith(embedded) else "real" for n, o in sources.items()}, line


def package(root, name):
    folder = root.joinpath(*name.split("."))
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")


@pytest.fixture
def detectron2(tmp_path):
    package(tmp_path / "site", "detectron2")
    return tmp_path / "site"


@pytest.fixture
def detrex(tmp_path):
    """A detrex checkout: the package, and `projects` without `__init__.py` beside it."""
    package(tmp_path / "checkout", "detrex")
    package(tmp_path / "checkout", "projects.dino.modeling")
    package(tmp_path / "checkout", "projects.align_detr")
    return tmp_path / "checkout"


@BARE
def test_everything_is_embedded_on_a_bare_machine():
    """Protects the plain `pip install`: nothing else is needed, and the start-up line says so."""
    sources, line = origins()
    assert set(sources.values()) == {"embedded"}
    assert "detectron2 embedded" in line and "projects.dab_detr embedded" in line


@BARE
def test_a_real_detectron2_wins_and_detrex_is_filled_in(detectron2):
    """Protects resolution per package."""
    sources, _ = origins(detectron2)
    assert sources == {
        "detectron2": "real",
        "detrex": "embedded",
        "projects.dino.modeling": "embedded",
        "projects.dab_detr.modeling": "embedded",
    }


@BARE
def test_a_real_detrex_brings_its_projects(detectron2, detrex):
    """Protects `projects.X` of detrex's checkout, whose root is not on the path; missing packages are embedded."""
    (detectron2 / "detrex").symlink_to(detrex / "detrex")
    for path in [(detectron2, detrex), (detectron2,)]:
        sources, line = origins(*path)
        assert sources == {
            "detectron2": "real",
            "detrex": "real",
            "projects.dino.modeling": "real",
            "projects.dab_detr.modeling": "embedded",
        }
        assert str(detrex / "detrex") in line


def test_the_embedded_engine_can_be_forced(detectron2, detrex):
    """Protects the workaround for a broken installation (such as "Cannot import detrex._C")."""
    sources, _ = origins(detectron2, detrex, platform="embedded")
    assert set(sources.values()) == {"embedded"}


def test_forcing_upstream_wins_nothing_embedded(detectron2, detrex):
    """Protects the comparison with a real installation."""
    sources, _ = origins(detectron2, detrex, platform="upstream")
    assert sources["detectron2"] == sources["detrex"] == sources["projects.dino.modeling"] == "real"


@pytest.mark.parametrize(
    "platform, message",
    [
        pytest.param(
            "upstream", "ALIGN_DETR_PLATFORM=upstream, but detectron2 and detrex cannot be imported", marks=BARE
        ),
        ("detrex", "ALIGN_DETR_PLATFORM='detrex': set it to 'embedded' or 'upstream'"),
    ],
)
def test_forcing_what_is_absent_says_so(platform, message):
    """Protects the user from a silent fallback."""
    done = probe(platform=platform)
    assert done.returncode != 0 and message in done.stderr.splitlines()[-1]


@pytest.mark.engine("on import, detrex looks for a compiler, and PyTorch's CUDA build for its libraries")
def test_import_needs_no_gpu_compiler_or_network():
    """Protects offline machines: all imports work with sockets and subprocesses blocked."""
    code = """
import socket, subprocess, sys
sys.path.insert(0, sys.argv[1])
def refuse(*args, **kwargs): raise RuntimeError("not allowed on import")
socket.socket.connect = refuse
subprocess.Popen.__init__ = refuse
import align_detr, align_detr.modeling, detrkit.config
import detectron2.data, detectron2.engine, detectron2.evaluation, detectron2.checkpoint
import projects.dino.modeling, projects.dab_detr.modeling
import torch
assert not torch.cuda.is_initialized()
"""
    done = probe(code=code)
    assert done.returncode == 0, done.stderr
