"""Files of weights: what is read, and that nothing in them is ever run."""

import argparse
import collections
import io
import json
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detrkit.weights import is_of_other_code_base, look_at, read

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.tensor([1, 2])}
LEGACY = {"_use_new_zipfile_serialization": False}


class Program:
    """Runs a function when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Disguised(argparse.Namespace):
    """A namespace that does something when its state is set."""

    def __setstate__(self, state):
        state["path"].touch()


def archive(path, pickled, **storages):
    """A file as PyTorch lays it out, with this pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for key, content in storages.items():
            file.writestr(f"archive/data/{key.removeprefix('_')}", content)
    return path


def tensor_pickle(shape, stride, offset=0, count=4, key="0", storage="FloatStorage"):
    """A pickle of {"x": tensor}, as PyTorch writes it, with any numbers."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj if isinstance(obj, tuple) and obj and obj[0] == "storage" else None

    class Stored:
        def __reduce__(self):
            pid = ("storage", getattr(torch, storage), key, "cpu", count)
            return torch._utils._rebuild_tensor_v2, (pid, offset, shape, stride, False, collections.OrderedDict())

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"x": Stored()})
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("data", [True, False], ids=["data", "header"])
def test_both_of_pytorchs_formats_are_read(tmp_path, options, data):
    """OpenMMLab publishes files in the format of before PyTorch 1.6. Views, shared and transposed tensors come back;
    the header alone has the same names and shapes."""
    base = torch.arange(12.0)
    state = {
        **STATE,
        "view": base[2:8].view(2, 3),
        "shared": base,
        "transposed": torch.rand(3, 2).t(),
        "half": torch.rand(3).half(),
        "bfloat16": torch.rand(3).bfloat16(),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.rand(2)),
    }
    torch.save({"model": state, "epoch": 11}, tmp_path / "x.pth", **options)
    file = read(tmp_path / "x.pth", data)
    assert {name: tensor.shape for name, tensor in file.state.items()} == {n: t.shape for n, t in state.items()}
    assert {tensor.dtype for tensor in file.state.values()} == {tensor.dtype for tensor in state.values()}
    assert file.extra["epoch"] == 11
    if data:
        assert all(torch.equal(file.state[name], tensor) for name, tensor in state.items())
    else:
        assert all(tensor.is_meta for tensor in file.state.values())


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_the_options_of_a_training_are_read_as_data(tmp_path, options):
    """IDEA-Research's files hold an `argparse.Namespace`, which is a dictionary here; so do schedulers' counters."""
    options_there = argparse.Namespace(lr=1e-4, dilation=False, pe_temperatureH=20, names=["a", ("b", None)])
    content = {"model": STATE, "args": options_there, "milestones": collections.Counter([11])}
    torch.save(content, tmp_path / "x.pth", **options)
    file = read(tmp_path / "x.pth")
    assert file.extra["args"] == vars(options_there) and type(file.extra["args"]) is dict
    assert file.extra["milestones"] == {11: 1}


def test_a_training_of_mmengine_is_read(tmp_path, monkeypatch):
    """Its checkpoints hold histories of metrics: objects with arrays and functions, which are passed over."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self):
            self.values, self.method = np.arange(3.0), HistoryBuffer.mean

        def mean(self):
            return self.values.mean()

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = module.__name__, "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        hub = {"log_scalars": {"loss": HistoryBuffer()}, "seed": np.int64(3)}
        torch.save({"state_dict": STATE, "meta": {"epoch": 1}, "message_hub": hub}, tmp_path / "x.pth")
    file = read(tmp_path / "x.pth")
    assert torch.equal(file.state["a.weight"], STATE["a.weight"]) and file.extra["meta"] == {"epoch": 1}


def test_prefixes_of_wrappers_are_taken_off(tmp_path):
    """Published files are often of models in DistributedDataParallel."""
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in STATE.items()}}, tmp_path / "x.pth")
    assert read(tmp_path / "x.pth").state.keys() == STATE.keys()


def test_safetensors_are_read_with_the_config_beside_them(tmp_path):
    """Hugging Face's folders say in config.json what no tensor says."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"id2label": {"0": "cat"}}')
    file = read(tmp_path / "model.safetensors")
    assert torch.equal(file.state["a.weight"], STATE["a.weight"])
    assert file.extra["config"] == {"id2label": {"0": "cat"}}
    assert read(tmp_path / "model.safetensors", data=False).state["a.weight"].shape == (2, 3)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["model", "args", "beside"])
def test_a_program_in_a_pickle_is_refused_and_not_run(tmp_path, options, where):
    """Wherever it lies: among the weights, in the options, or beside them."""
    ran, program = tmp_path / "ran", Program(tmp_path / "ran")
    content = {
        "model": {"model": {**STATE, "x": program}},
        "args": {"model": STATE, "args": argparse.Namespace(x=program)},
        "beside": {"model": STATE, "hook": program},
    }[where]
    torch.save(content, tmp_path / "x.pth", **options)
    with pytest.raises(ValueError, match=r"x.pth contains pathlib.*refused"):
        read(tmp_path / "x.pth")
    assert not ran.exists()


def test_a_subclass_of_namespace_is_refused(tmp_path):
    """Its `__setstate__` would run."""
    options = Disguised()
    options.path = tmp_path / "ran"
    torch.save({"model": STATE, "args": options}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="Disguised"):
        read(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "pickled, said",
    [
        (b"cos\nsystem\n(S'touch ran'\ntR.", "os.system"),
        (b"(S'touch ran'\nios\nsystem\n.", "the instruction STRING"),
        (b"(ios\nsystem\n.", "the instruction INST"),
        (b"\x80\x02cargparse\nNamespace\nq\x00)\x81q\x01.", None),
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "builtins.eval"),
        (b"\x80\x02cbuiltins\ngetattr\ncargparse\nNamespace\nX\x04\x00\x00\x00__eq\x86R.", "getattr"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.", "os.system"),
        (b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.", "the state of a Name"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.", "the state of a Name"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00hex_c\x86R.", "encode to hex"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02cargparse\nNamespace\n(X\x01\x00\x00\x00at\x81.", "object of argparse.Namespace"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "str in place of a tuple"),
        (b"\x80\x02}q\x00.", "holds"),
        (b"\x80\x02.", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02(((((", "damaged"),
    ],
)
def test_instructions_that_no_data_needs_are_refused(tmp_path, monkeypatch, pickled, said):
    """The machine knows the instructions for plain data alone: no other calls, no attributes of classes."""
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "x.pth", pickled)
    with pytest.raises(ValueError, match=said or "checkpoint"):
        read(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError):
        read(path, data=False)


@pytest.mark.parametrize(
    "shape, stride, offset, count",
    [
        ((2**20, 2**20), (0, 0), 0, 4),  # a terabyte of one number
        ((5,), (1,), 0, 4),
        ((4,), (1,), 1, 4),
        ((2, 2), (4, 1), 0, 4),
        ((-1,), (1,), 0, 4),
        ((2,), (-1,), 3, 4),
        ((2,), (1, 1), 0, 4),
        ((2,), (1,), 0, 2**40),
        ((2.0,), (1,), 0, 4),
    ],
)
@pytest.mark.parametrize("data", [True, False])
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, shape, stride, offset, count, data):
    """Such a tensor reads foreign memory, or takes any amount of it."""
    path = archive(tmp_path / "x.pth", tensor_pickle(shape, stride, offset, count), _0=b"\0" * 16)
    with pytest.raises(ValueError, match="x.pth"):
        read(path, data)


def test_a_tensor_within_its_storage_is_read(tmp_path):
    """The counterpart of the refusals: the same hand-made file, with numbers that fit."""
    path = archive(tmp_path / "x.pth", tensor_pickle((2, 2), (2, 1)), _0=struct.pack("<4f", 1, 2, 3, 4))
    assert read(path).state["x"].tolist() == [[1, 2], [3, 4]]


def test_a_compressed_archive_is_refused(tmp_path):
    """PyTorch never compresses; a few kilobytes could be gigabytes."""
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", tensor_pickle((4,), (1,)))
        file.writestr("archive/data/0", b"\0" * 10**7)
    assert (tmp_path / "x.pth").stat().st_size < 10**5
    with pytest.raises(ValueError, match="compressed"):
        read(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["../../ran", "/ran", "archive/../../ran", "archive\\..\\ran"])
def test_entries_with_paths_out_of_the_archive_are_refused(tmp_path, name):
    """Nothing is unpacked anyway; a file with such an entry is not one of PyTorch's."""
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("archive/data.pkl", tensor_pickle((4,), (1,)))
        entry = zipfile.ZipInfo("archive/data/0")
        file.writestr(entry, b"\0" * 16)
        bad = zipfile.ZipInfo("x")
        bad.filename = name
        file.writestr(bad, b"ran")
    with pytest.raises(ValueError, match="entry"):
        read(tmp_path / "x.pth")
    assert not list(tmp_path.parent.glob("**/ran"))


def test_a_storage_named_by_a_path_is_not_looked_for(tmp_path):
    """The key of a storage is a name within the archive."""
    path = archive(tmp_path / "x.pth", tensor_pickle((4,), (1,), key="../../x"), _0=b"\0" * 16)
    with pytest.raises(ValueError, match="missing or too short"):
        read(path)


def test_archives_that_are_programs_are_refused(tmp_path):
    """TorchScript holds code; a tar archive is a format in which old versions of PyTorch let code through."""
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "x.pth")
    with pytest.raises(ValueError, match="TorchScript"):
        read(tmp_path / "x.pth")
    with tarfile.open(tmp_path / "y.pth", "w") as file:
        file.add(tmp_path / "x.pth", "x")
    with pytest.raises(ValueError, match="tar archive"):
        read(tmp_path / "y.pth")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + b"\0" * 40, b"\x80\x02]."])
def test_other_files_end_in_one_line(tmp_path, content):
    """A wrong path is the most common mistake."""
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match="x.pth") as error:
        read(tmp_path / "x.pth")
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        read(tmp_path / "none.pth")


@pytest.mark.parametrize("content", [{"model": {"a": 1}}, {"epoch": 3}, [1], {"model": {}}])
def test_content_that_is_no_state_dict_is_refused(tmp_path, content):
    """The message says what is there instead."""
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="not a checkpoint"):
        read(tmp_path / "x.pth")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_file_is_read_or_refused(tmp_path_factory, data):
    """Any byte of a file may be any other: it is read, or refused in one line."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / "mutated.pth"
    buffer = io.BytesIO()
    options = data.draw(st.sampled_from([{}, LEGACY]))
    torch.save({"model": STATE, "args": argparse.Namespace(a=1)}, buffer, **options)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read(path)
    except ValueError as error:
        assert "\n" not in str(error)


CONTRACT = Path(__file__).resolve().parents[2] / "contract"


@pytest.mark.parametrize("path", sorted(CONTRACT.glob("state_dict_foreign_*.json")), ids=lambda path: path.stem[19:])
@pytest.mark.parametrize("suffix, options", [(".pth", {}), (".pth", LEGACY), (".bin", {})])
def test_a_malicious_file_of_each_format_runs_nothing(tmp_path, path, suffix, options):
    """With the names of a published model and a program beside them: it is refused before its format matters."""
    state = {name: torch.zeros(1) for name in json.loads(path.read_text())}
    content = {"state_dict": state, "meta": {"cfg": Program(tmp_path / "ran")}, "args": Disguised()}
    torch.save(content, tmp_path / f"x{suffix}", **options)
    for data in (False, True):
        with pytest.raises(ValueError, match="refused"):
            look_at(tmp_path / f"x{suffix}", data=data)
    assert not is_of_other_code_base(tmp_path / f"x{suffix}") and not (tmp_path / "ran").exists()


def test_safetensors_with_a_false_header_are_refused(tmp_path):
    """Lengths and offsets beyond the file, which a reader must not trust."""
    for header in (
        b'{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}',
        b'{"x":{}}',
        b"{" * 99,
    ):
        (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
        with pytest.raises(ValueError, match="x.safetensors is (damaged|incomplete)"):
            read(tmp_path / "x.safetensors")
