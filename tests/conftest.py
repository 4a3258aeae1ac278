"""Puts the packages on the path as `tools/` does, sorts tests by platform, and reads the recorded numbers."""

import importlib.util
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch is imported; see detrkit/commands/__init__.py

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "projects"), str(ROOT)]

import align_detr  # noqa: E402, F401  (its import makes detectron2, detrex and projects.* importable)
from align_detr._platform import describe, is_upstream  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
WITHOUT_CUDA = Path(__file__).parent / "upstream" / "without_cuda"
UPSTREAM = is_upstream()

if UPSTREAM and not torch.cuda.is_available():
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(WITHOUT_CUDA), os.environ.get("PYTHONPATH")]))
    spec = importlib.util.spec_from_file_location("without_cuda", WITHOUT_CUDA / "sitecustomize.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


if UPSTREAM:
    spec = importlib.util.spec_from_file_location("meta_device", Path(__file__).parent / "upstream" / "meta_device.py")
    meta_device = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(meta_device)
    meta_device.keep_linspace_values()


# Jobs in the background of a shell ignore Ctrl-C, and so would the processes that they start to be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return describe()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """On detectron2 and detrex, files of tests that are the engine's as a whole: they import what only it has."""
    is_test = UPSTREAM and collection_path.suffix == ".py"
    return (is_test and "pytestmark = pytest.mark.engine(" in collection_path.read_text(encoding="utf-8")) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On detectron2 and detrex, single tests of the engine; on the engine, those of detectron2 and detrex."""
    foreign = "engine" if UPSTREAM else "upstream"
    left_out = [item for item in items if item.get_closest_marker(foreign)]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    for item in items:
        if _needs_timm(item) and "timm" not in item.fixturenames:
            item.fixturenames.insert(0, "timm")


def import_timm():
    """Import timm. It imports torchvision, whose wheels miss their library beside a PyTorch of another build: the
    schemas that torchvision then looks for are defined instead."""
    import sys

    import torch

    try:
        import timm
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]
        torch.torchvision_schemas = torch.library.Library("torchvision", "DEF")  # kept, since its end removes them
        for name in ("nms", "qnms"):
            torch.torchvision_schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import timm
    return timm


@pytest.fixture(scope="session")
def timm():
    """The package timm; skips where it is not installed."""
    for name in ("timm", "torchvision"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    return import_timm()


def _needs_timm(item: pytest.Item) -> bool:
    """Whether a parameter of the test is a config on a backbone of timm."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    names = [str(getattr(value, "name", value)) for value in parameters if isinstance(value, str | Path)]
    return any("lite0" in name or "_timm_" in name for name in names)


def _nest(flat: dict) -> dict | list:
    """`{"a/0/b": x}` -> `{"a": [{"b": x}]}`: a `/` nests, consecutive integers are list positions."""
    tree: dict = {}
    for key, value in flat.items():
        *parents, leaf = key.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value

    def lists(node):
        if not isinstance(node, dict):
            return node
        node = {k: lists(v) for k, v in node.items()}
        if node and set(node) == {str(i) for i in range(len(node))}:
            return [node[str(i)] for i in range(len(node))]
        return node

    return lists(tree)


def load_case(name: str) -> SimpleNamespace:
    """A recorded case of `tests/golden`: `config`, `input`, `state` (flat, float32) and `output`."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    config = json.loads(str(arrays.pop("config", "{}")))
    source = config.pop("state_from", None)
    part = {"input": {}, "state": {}, "output": {}}
    for key, value in arrays.items():
        head, _, rest = key.partition("/")
        if head in part and value.dtype.kind in "fiub":
            part[head][rest] = torch.from_numpy(np.asarray(value))
    state = {k: v.float() if v.is_floating_point() else v for k, v in part["state"].items()}
    if source is not None:
        state = load_case(source).state
    return SimpleNamespace(
        name=name, config=config, input=_nest(part["input"]), state=state, output=_nest(part["output"])
    )


@pytest.fixture(scope="session", autouse=True)
def annotation_cache(tmp_path_factory):
    """Keeps the copies of annotation files out of the home folder."""
    os.environ["ALIGN_DETR_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def golden():
    """`golden("resnet")` reads `tests/golden/resnet.npz`; see `load_case`."""
    return load_case


@pytest.fixture(scope="session")
def recorded_configs():
    """By name, the values of each config by dotted keys, and "parameters", the number of its model's parameters.

    From the recording, which `tests/upstream/test_recorded.py` compares with the configs and models.
    """
    recorded = json.loads((Path(__file__).parent / "upstream/recorded.json").read_text(encoding="utf-8"))

    def model(name: str) -> str:
        settings = {key: value for key, value in recorded["configs"][name].items() if key.startswith("model.")}
        return json.dumps(settings, sort_keys=True)

    counts = {model(name): about["parameters"] for name, about in recorded["models"].items()}
    return {name: {**cfg, "parameters": counts[model(name)]} for name, cfg in recorded["configs"].items()}


class ProgramRunner:
    """`run(…)` is `subprocess.run([sys.executable, …])`, by a server of programs, which it starts when it is needed.

    Args:
        folder: for the server's socket and the output of programs.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._server: subprocess.Popen | None = None
        self._lock = threading.Lock()

    def __call__(self, *words: object, cwd: object = ROOT, timeout: float = 500, **environment: str):
        """Run `python WORDS` with more variables in its environment; return its status and output.

        It has one thread, and imports the packages of this checkout.
        """
        with self._lock:
            if self._server is None:
                self._start()
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            outputs = [Path(folder, name) for name in ("stdout", "stderr")]
            for output in outputs:
                output.touch()
            status = self._ask(command := list(map(str, words)), cwd, environment, outputs, timeout)
            texts = [output.read_text(errors="replace") for output in outputs]
        return subprocess.CompletedProcess(command, status, *texts)

    def _ask(
        self, words: list[str], cwd: object, environment: dict[str, str], outputs: list[Path], timeout: float
    ) -> int:
        path = os.pathsep.join(filter(None, [str(ROOT / "projects"), os.environ.get("PYTHONPATH")]))
        given = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
        request = {"words": words, "folder": str(cwd), "environment": {**os.environ, **given}}
        request.update({output.name: str(output) for output in outputs})
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile() as answers:
            connection.connect(str(self.folder / "socket"))
            connection.sendall(f"{json.dumps(request)}\n".encode())
            process = int(answers.readline())
            connection.settimeout(timeout)
            try:
                return int(answers.readline())
            except TimeoutError:
                os.killpg(process, signal.SIGKILL)
                raise subprocess.TimeoutExpired(words, timeout) from None

    def _start(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("program_server.py")), str(self.folder / "socket")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout.readline() == "ready\n"

    def close(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait()
            self._server.stdout.close()


@pytest.fixture(scope="session")
def run_python():
    """`run_python("-m", "align_detr", …, cwd=…, NAME=value)`: a `ProgramRunner`."""
    with tempfile.TemporaryDirectory() as folder:  # names of sockets are short
        runner = ProgramRunner(Path(folder))
        yield runner
        runner.close()


@pytest.fixture
def run_tool(tmp_path, run_python):
    """`run_tool("train_net.py", …)`, `run_tool("export", …)`: what a tool or command that must succeed prints.

    The dataset is 8 + 2 drawn images.
    """

    def run(tool: str, *arguments: object) -> str:
        program = [ROOT / "tools" / tool] if tool.endswith(".py") else ["-m", "align_detr", tool]
        done = run_python(*program, *arguments, TINY_COCO_ROOT=str(tmp_path / "data"))
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("make-data", "--synthetic", "--train", 8, "--val", 2, "--output", tmp_path / "data")
    return run


@pytest.fixture
def run_with_timm(timm):
    """`run_with_timm("train_net.py", …)`: what a tool that must succeed prints, where it can import timm."""
    program = (
        f"{inspect.getsource(import_timm)}\nimport_timm()\nimport runpy, sys\nsys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )

    def run(tool: str, *arguments: object, **environment: str) -> str:
        command = [sys.executable, "-c", program, str(ROOT / "tools" / tool), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tools"), **environment}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
