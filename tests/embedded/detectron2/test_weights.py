"""Weights of other sources: no code runs, names are mapped, a report lists the result."""

import functools
import hashlib
import http.server
import io
import logging
import os
import pickle
import tarfile
import threading
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.checkpoint import DetectionCheckpointer, urls
from detectron2.checkpoint.formats import read_weights
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicStem
from torch import nn

pytestmark = pytest.mark.engine("the engine's reader of every published format; detectron2 has its own")


class Calls:
    """Calls `function` when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def in_array(content, path):
    path.write_bytes(pickle.dumps({"model": np.array([content], dtype=object)}))


WRITERS = {
    "pkl 2": lambda content, path: path.write_bytes(pickle.dumps(content, 2)),
    "pkl 0": lambda content, path: path.write_bytes(pickle.dumps(content, 0)),
    "pkl 5": lambda content, path: path.write_bytes(pickle.dumps(content, 5)),
    "in an array": in_array,
    "pth": torch.save,
    "old pth": legacy,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl"])
def test_code_in_a_file_is_refused_by_name(tmp_path, write, name):
    """In every format and at every place in the file: the function is not called, and the message names it."""
    mark = tmp_path / "ran"
    write({"model": {"weight": 1.0}, "x": Calls(os.system, f"touch {mark}")}, path := tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} wants to run (posix|nt).system: refused") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize("function", [eval, np.fromfile, torch.load, np.lib.format.open_memmap])
@pytest.mark.parametrize("protocol", [2, 4])
def test_functions_of_builtins_numpy_and_torch_are_refused_too(tmp_path, function, protocol):
    """Only numpy's functions that rebuild arrays are allowed."""
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": Calls(function, str(tmp_path / "x"))}, protocol))
    with pytest.raises(ValueError, match=rf"wants to run \S+\.{function.__name__}: refused"):
        read_weights(path)


@pytest.mark.parametrize("dtype", [object, "S3", [("field", "O")]])
def test_only_arrays_of_numbers_are_read(tmp_path, dtype):
    """Arrays of objects are refused: a forged type could contain arbitrary pointers."""
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"model": np.zeros(2, dtype)}))
    with pytest.raises(ValueError, match=r"wants to run numpy.dtype\('\w+'\): refused"):
        read_weights(tmp_path / "weights.pkl")


@pytest.mark.parametrize("write", [torch.save, legacy])
def test_objects_beside_the_tensors_are_named(tmp_path, write):
    """Many published files contain training options; the message says what to do."""
    from argparse import Namespace

    write({"model": {"weight": torch.ones(2)}, "args": Namespace(lr=1)}, path := tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"argparse.Namespace: refused; .* save its tensors anew"):
        read_weights(path)


def test_tar_archives_are_refused(tmp_path):
    """Tar archives are refused: PyTorch before 2.6 runs code in them even with weights_only."""
    with tarfile.open(tmp_path / "weights.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    with pytest.raises(ValueError, match="weights.pth is a tar archive"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>", b"\x80\x02", b"PK\x03\x04 cut off", b"\0" * 40])
def test_what_is_not_a_file_of_weights_is_named(tmp_path, content):
    """Incomplete downloads, and HTML pages instead of weights, are errors."""
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match="weights.pth") as error:
        read_weights(tmp_path / "weights.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_of_a_pickle_come_back(tmp_path, protocol):
    """All protocols, with the other entries of detectron2's files."""
    arrays = OrderedDict(
        a=np.arange(6, dtype=np.float32).reshape(2, 3).T,
        b=np.array([1, 2], ">f2"),
        k=np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
        n=np.array(3),
        s=np.float64(0.5),
        t=np.array([True, False]),
        e=np.zeros((0, 3), np.float32),
    )
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    read = read_weights(tmp_path / "x.pkl")
    assert read["matching_heuristics"] is True
    for name, array in arrays.items():
        assert np.array_equal(read["model"][name], array) and read["model"][name].dtype == array.dtype


def test_a_pickle_of_python_2_is_read(tmp_path):
    """Python 2 pickles strings as bytes: here `{"w": array([1, 2], float32)}`."""
    values = np.float32([1, 2]).tobytes()
    (tmp_path / "x.pkl").write_bytes(
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(I0\ntU\x01b\x87R"
        b"(I1\n(I2\ntcnumpy\ndtype\n(U\x02f4I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI00\nU\x08" + values + b"tbs."
    )
    assert read_weights(tmp_path / "x.pkl")["w"].tolist() == [1, 2]


def resnet(depth, **kwargs):
    stages = ResNet.make_default_stages(depth, norm="FrozenBN")
    return ResNet(BasicStem(norm="FrozenBN"), stages, out_features=["res2", "res5"], **kwargs)


class Detector(nn.Module):
    """A head that is shared with the decoder, on a backbone: a ResNet of some depth, or a few linear layers."""

    def __init__(self, classes=3, depth=None):
        super().__init__()
        self.backbone = nn.ModuleList(nn.Linear(4, 4) for _ in range(9)) if depth is None else resnet(depth)
        self.transformer = nn.ModuleDict({"decoder": nn.Linear(4, 4)})
        self.class_embed = nn.Linear(4, classes)
        self.transformer.decoder.class_embed = self.class_embed


TORCHVISION_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


@functools.cache
def torchvision_state(depth):
    """A state dict with torchvision's names and random values."""
    generator = torch.Generator().manual_seed(depth)
    state = {}

    def conv_bn(conv, bn, out_channels, in_channels, size):
        fan_in = in_channels * size**2
        shape = (out_channels, in_channels, size, size)
        state[f"{conv}.weight"] = torch.randn(shape, generator=generator) / fan_in**0.5
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{bn}.{leaf}"] = torch.rand(out_channels, generator=generator) + 0.5 * (leaf == "running_var")
        state[f"{bn}.num_batches_tracked"] = torch.tensor(7)

    conv_bn("conv1", "bn1", 64, 3, 7)
    channels = 64
    for stage, blocks in enumerate(TORCHVISION_BLOCKS[depth]):
        width = 64 * 2**stage
        out = width if depth < 50 else 4 * width
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            kernels = [(width, channels, 3), (width, width, 3)]
            if depth >= 50:
                kernels = [(width, channels, 1), (width, width, 3), (out, width, 1)]
            for i, kernel in enumerate(kernels, 1):
                conv_bn(f"{name}.conv{i}", f"{name}.bn{i}", *kernel)
            if channels != out:
                conv_bn(f"{name}.downsample.0", f"{name}.downsample.1", out, channels, 1)
            channels = out
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, channels), torch.zeros(1000)
    return state


def torchvision_features(state, depth, x):
    """layer1 and layer4 of torchvision's ResNet: the stride is in the first 3×3 of a stage."""

    def conv_bn(x, conv, bn, stride=1):
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, var, scale, shift = (state[f"{bn}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, scale, shift)

    outputs = []
    x = F.max_pool2d(conv_bn(x, "conv1", "bn1", 2).relu(), 3, 2, 1)
    for stage, blocks in enumerate(TORCHVISION_BLOCKS[depth], 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y, last = x, 2 if depth < 50 else 3
            for i in range(1, last + 1):
                takes_stride = i == (1 if depth < 50 else 2)
                y = conv_bn(y, f"{name}.conv{i}", f"{name}.bn{i}", stride if takes_stride else 1)
                y = y.relu() if i < last else y
            if f"{name}.downsample.0.weight" in state:
                x = conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = (x + y).relu()
        outputs.append(x)
    return outputs[0], outputs[-1]


@pytest.fixture
def load(tmp_path, caplog):
    """Return `load(model, content)`: write the content to a file (default: `torch.save`), load it, return the log."""

    def load(model, content, name="weights.pth", write=torch.save):
        write(content, tmp_path / name)
        caplog.clear()
        logging.getLogger("fvcore").propagate = True
        with caplog.at_level(logging.INFO):
            DetectionCheckpointer(model).load(str(tmp_path / name))
        return caplog.text

    return load


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_weights_give_torchvisions_features(load, depth):
    """Features equal those of torchvision's network with the same weights."""
    state = torchvision_state(depth)
    model = resnet(depth).eval()
    log = load(model, state)
    total = len(model.state_dict())
    assert f"{total} of the model's {total} tensors loaded" in log and "num_batches_tracked" not in log
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model(x)
        for name, expected in zip(("res2", "res5"), torchvision_features(state, depth, x), strict=True):
            torch.testing.assert_close(features[name], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("naming", ["detectron2", "torchvision"])
def test_a_backbone_finds_its_place_in_a_detector(load, naming):
    """From a pickle of numpy arrays with detectron2's names, or from torchvision's file; the report counts the rest."""
    state = torchvision_state(18)
    plain = resnet(18)
    load(plain, state)
    if naming == "detectron2":
        arrays = {name: tensor.numpy() for name, tensor in plain.state_dict().items()}
        arrays["stem.fc.weight"] = np.zeros((1000, 512), np.float32)
        content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    else:
        content = state
    model = Detector(depth=18)
    log = load(model, content, "R-18.pkl", WRITERS["pkl 2" if naming == "detectron2" else "pth"])
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor)
    assert f"backbone {len(plain.state_dict())}" in " ".join(log.split())
    assert "fc.weight" in log and "class_embed.weight" in log
    assert len(log.splitlines()) < 24


@pytest.mark.parametrize("depths", [(18, 34), (34, 18)])
def test_a_resnet_of_another_depth_is_refused(load, depths):
    """Weights of ResNet-101 are refused for ResNet-50, although most shapes fit."""
    model = Detector(depth=depths[0])
    before = model.backbone.stem.conv1.weight.clone()
    with pytest.raises(ValueError, match=r"another depth: \d blocks in backbone.res\d, this model's has \d"):
        load(model, torchvision_state(depths[1]))
    assert torch.equal(model.backbone.stem.conv1.weight, before)


def test_another_detector_on_the_same_backbone_is_refused(load):
    """Weights of another detector are refused, even if most tensors belong to a common backbone."""
    state = {f"backbone.{name}": tensor for name, tensor in Detector().backbone.state_dict().items()}
    load(Detector(), state)
    others = {f"transformer.{i}.weight": torch.zeros(4, 4) for i in range(4)}
    with pytest.raises(ValueError, match=r"0 of its 4 tensors fit .* unknown: transformer\.0\.weight"):
        load(Detector(), {**state, **others})


@pytest.mark.parametrize("name", ["class_embed", "transformer.decoder.class_embed"])
def test_either_name_of_a_shared_module_fills_both(load, name):
    """Files that keep one name of a head load completely."""
    source, model = Detector(), Detector()
    others = {"class_embed", "transformer.decoder.class_embed"} - {name}
    state = {k: v for k, v in source.state_dict().items() if k.rpartition(".")[0] not in others}
    log = load(model, state)
    assert torch.equal(model.transformer.decoder.class_embed.weight, source.class_embed.weight)
    assert "ignored" not in log and "initial" not in log


def test_a_head_of_other_classes_stays_as_it_was_and_the_report_says_so(load):
    """Weights of another shape are skipped, the rest is loaded."""
    source, model = Detector(classes=91), Detector(classes=3)
    head = model.class_embed.weight.clone()
    log = load(model, {"model": source.state_dict()})
    assert torch.equal(model.class_embed.weight, head)
    assert "class_embed.weight and 1 more, 91×4 in the file, 3×4 here (another number of classes?)" in log
    assert torch.equal(model.backbone[0].weight, source.backbone[0].weight)


def test_half_precision_is_cast_to_the_models_dtype(load):
    """float16 files load into a float32 model."""
    source, model = Detector(), Detector()
    load(model, {"model": {k: v.half() for k, v in source.state_dict().items()}})
    assert model.class_embed.weight.dtype == torch.float32
    assert torch.equal(model.class_embed.weight, source.class_embed.weight.half().float())


@pytest.mark.parametrize("wrapping", [("model", "module."), ("state_dict", "module._orig_mod."), ("ema_state", "")])
def test_wrapped_weights_are_unwrapped(load, wrapping):
    """Files of DDP, torch.compile, other trainers and EMA."""
    key, prefix = wrapping
    source, model = Detector(), Detector()
    load(model, {key: {prefix + k: v for k, v in source.state_dict().items()}, "iteration": 3})
    assert torch.equal(model.class_embed.weight, source.class_embed.weight)


def test_safetensors(load):
    """The content decides, not the name."""
    safetensors = pytest.importorskip("safetensors.torch")
    source, model = Detector(), Detector()
    state = {k: v.clone() for k, v in source.state_dict().items()}
    load(model, state, "weights.bin", safetensors.save_file)
    assert torch.equal(model.class_embed.weight, source.class_embed.weight)


@pytest.mark.parametrize(
    "content", [{"blobs": {"conv1_w": 1}}, {"model": {"a": "text"}}, {"model": {}}, [1], {"lr": 1}], ids=str
)
def test_a_file_without_weights_is_an_error(load, content):
    """The error is one line with the name of the file."""
    with pytest.raises(ValueError, match="weights.pkl") as error:
        load(Detector(), content, "weights.pkl", WRITERS["pkl 2"])
    assert "\n" not in str(error.value)


def test_resuming_wants_exactly_the_same_model(tmp_path):
    """Resuming in another model is an error; its weights can be loaded."""
    DetectionCheckpointer(Detector(classes=3), str(tmp_path)).save("model", iteration=1)
    other = DetectionCheckpointer(Detector(classes=4), str(tmp_path))
    with pytest.raises(ValueError, match="cannot be resumed from .*class_embed.weight 3×4 instead of 4×4"):
        other.resume_or_load("", resume=True)
    assert other.resume_or_load(str(tmp_path / "model.pth"), resume=False)["iteration"] == 1


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server for `tmp_path/www`; downloads go to a temporary cache."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "www").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", tmp_path / "www"
        server.shutdown()
        thread.join()


def test_a_url_is_downloaded_once(server):
    """The second load uses the cache."""
    url, folder = server
    torch.save({"model": Detector().state_dict()}, folder / "weights.pth")
    DetectionCheckpointer(Detector()).load(f"{url}weights.pth")
    (folder / "weights.pth").unlink()
    DetectionCheckpointer(Detector()).load(f"{url}weights.pth")


def test_a_failed_download_names_the_url_and_the_way_round(server):
    """Without a network the message says which file to download."""
    url, _ = server
    with pytest.raises(OSError, match=rf"cannot download {url}x.pth .*: fetch {url}x.pth elsewhere") as error:
        DetectionCheckpointer(Detector()).load(f"{url}x.pth")
    assert "\n" not in str(error.value)


def test_torchvision_urls(server, monkeypatch):
    """The hash in the file's name is checked; the error for an unknown network lists the known ones."""
    url, folder = server
    monkeypatch.setattr(urls.TorchvisionHandler, "URL", url)
    (folder / "resnet18-f37072fd.pth").write_bytes(b"an error page")
    for _ in range(2):  # what is wrong must not stay in the cache
        with pytest.raises(OSError, match=f"fetch {url}resnet18-f37072fd.pth elsewhere"):
            DetectionCheckpointer(Detector()).load("torchvision://resnet18")

    torch.save(torchvision_state(18), folder / "resnet18-good.pth")
    digits = hashlib.sha256((folder / "resnet18-good.pth").read_bytes()).hexdigest()[:8]
    (folder / "resnet18-good.pth").rename(folder / f"resnet18-{digits}.pth")
    monkeypatch.setitem(urls._FILES, "resnet18", f"resnet18-{digits}.pth")
    model = Detector(depth=18)
    DetectionCheckpointer(model).load("torchvision://resnet18")
    assert torch.equal(model.backbone.stem.conv1.weight, torchvision_state(18)["conv1.weight"])

    with pytest.raises(ValueError, match="torchvision://resnet50"):
        DetectionCheckpointer(Detector()).load("torchvision://resnet51")
