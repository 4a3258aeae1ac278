"""Published weights by name: the catalogue, and `zoo:NAME` wherever a file is expected."""

import contextlib
import hashlib
import json
import logging
import re
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import instantiate
from detectron2.utils.file_io import PathManager
from file_server import serving
from PIL import Image
from small_models import random_file

import detrkit
from detrkit.commands import analyze, command_line, demo, export, export_weights, make_data, train, weights
from detrkit.config.load import load_config
from detrkit.weights import classes_of_weights, is_name, local_path, look_at, names, recognise, zoo

ENTRIES = zoo.catalogue()
USABLE = {(entry.config, entry.overrides): entry for entry in ENTRIES.values() if not entry.lacks}
LOGGERS = ("detectron2", "detrex", "align_detr", "detrkit", "projects", "fvcore")


@contextlib.contextmanager
def ends_in_one_line(capsys, said):
    with pytest.raises(SystemExit) as error:
        yield
    assert error.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(said, lines[-1]), lines[-1]
    assert not any(line.startswith("Traceback") for line in lines)


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`own({"name": {...}})` writes a catalogue that $ALIGN_DETR_ZOO names. The cache is empty."""
    monkeypatch.setenv("ALIGN_DETR_CACHE", str(tmp_path / "cache"))

    def write(entries):
        zoo._read.cache_clear()
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(entries) if isinstance(entries, dict) else entries)
        monkeypatch.setenv("ALIGN_DETR_ZOO", str(tmp_path / "own.yaml"))

    return write


@pytest.fixture
def tiny(own, server, tmp_path):
    """`zoo:tiny_dino`: an IDEA-Research file of a small DINO with 80 classes, on the server; and its weights."""
    state = random_file("original_dino", tmp_path / "theirs.pth", num_classes=80)
    server.files["/weights/tiny-dino.pth"] = (tmp_path / "theirs.pth").read_bytes()
    facts = {"url": f"{server.url}/weights/tiny-dino.pth", "config": "dino_tiny", "detector": "DINO", "ap": 1.5}
    own({"tiny_dino": facts})
    return state


def test_every_entry_of_the_catalogue_says_where_and_whose_it_is():
    """Names are what people type: lower case, and each once. A licence is stated even where it was not seen."""
    for entry in ENTRIES.values():
        assert re.fullmatch(r"[a-z0-9_]+", entry.name), entry.name
        facts = (entry.title, entry.detector, entry.backbone, entry.format, entry.licence, entry.source)
        assert all(facts) and entry.url.startswith("https://"), entry
        assert entry.config or entry.missing, entry
        assert entry.ap is None or 35 < entry.ap < 70, entry
    assert len(ENTRIES) >= 170


def test_hashes_are_those_in_the_names_of_files():
    """mmdetection ends its names with the first eight digits."""
    named = {entry.name: re.search(r"-([0-9a-f]{8})\.pth$", entry.url) for entry in ENTRIES.values()}
    assert {name: found[1] for name, found in named.items() if found} == {
        name: ENTRIES[name].sha256 for name in ENTRIES if ENTRIES[name].sha256
    }
    assert len([found for found in named.values() if found]) >= 14


@pytest.mark.parametrize("entry", USABLE.values(), ids=lambda entry: entry.name)
def test_the_model_of_an_entry_builds(entry):
    """Its config is one that `align-detr configs` lists, and takes the entry's overrides."""
    cfg = zoo.config_of(entry.name)
    cfg.train.device = "cpu"
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert sum(parameter.numel() for parameter in model.parameters()) > 3e7
    for override in entry.overrides:
        key, _, value = override.partition("=")
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert str(node) == str(float(value) if isinstance(node, float) else value)


def test_what_is_missing_is_a_backbone_or_a_detector():
    """No R50 of a detector that is here is among them, but for tasks that are not."""
    for entry in ENTRIES.values():
        if entry.lacks:
            assert not (entry.config and entry.backbone in ("R50", "R101", "R50-DC5", "R101-DC5")), entry
            with pytest.raises(ValueError, match="this project does not have"):
                zoo.config_of(entry.name)


def test_an_entry_can_be_used_as_soon_as_its_config_is_there(tmp_path):
    """What an entry lacks is no longer missing with the config: a change that brings a backbone needs none here."""
    facts = {"name": "x", "url": "https://a.b/x.pth", "missing": "the Swin backbone"}
    rest = dict.fromkeys(("title", "detector", "backbone", "format", "licence", "source"), "")
    assert zoo.ZooEntry(**rest, **facts, config="dino_of_tomorrow").lacks == "the Swin backbone"
    assert zoo.ZooEntry(**rest, **facts, config="dino_tiny").lacks == ""


def test_list_shows_what_can_be_used(capsys):
    weights.main(["list", "--model", "align", "--backbone", "r50"])
    out = capsys.readouterr().out
    assert "align_detr_r50_4scale_12ep " in out and "50.5" in out and "Apache-2.0" in out and "by hand" in out
    assert "co_dino" not in out and "more need" not in out
    weights.main(["list", "--model", "dino", "--backbone", "swin", "--all"])
    out = capsys.readouterr().out
    assert "co_dino_swin_large_5scale_16ep_o365 " in out and "64.1" in out
    with ends_in_one_line(capsys, "no published weights have --model 'yolo'"):
        weights.main(["list", "--model", "yolo"])


def test_a_wrong_name_suggests_the_nearest(capsys):
    with ends_in_one_line(capsys, "there are no weights named zoo:co_dino_r50_5scale12ep: did you mean co_dino"):
        weights.main(["get", "co_dino_r50_5scale12ep"])
    with pytest.raises(ValueError, match="`align-detr weights list` lists them"):
        zoo.find_entry("zoo:???")


def test_get_downloads_and_checks(tiny, server, tmp_path, capsys):
    """Once; and again, it looks whether the file is whole."""
    weights.main(["get", "tiny_dino"])
    path = tmp_path / "cache" / "weights" / "tiny_dino" / "tiny-dino.pth"
    assert f"{path}: " in capsys.readouterr().out and path.is_file()
    weights.main(["get", "zoo:tiny_dino"])
    assert len(server.requests) == 1
    capsys.readouterr()
    weights.main(["list", "--model", "DINO"])
    assert re.search(r"tiny_dino .* 1\.5 .*here", capsys.readouterr().out)


def test_a_damaged_file_is_downloaded_anew(own, server, tmp_path, capsys):
    """By `get`, if the hash is known."""
    server.files["/a.pth"] = b"whole"
    own({"a": {"url": f"{server.url}/a.pth", "config": "dino_tiny", "sha256": hashlib.sha256(b"whole").hexdigest()}})
    path = zoo.get("a")
    path.write_bytes(b"damaged")
    with ends_in_one_line(capsys, "is damaged or another file"):
        weights.main(["get", "a"])
    weights.main(["get", "a"])
    assert path.read_bytes() == b"whole"


def test_offline_says_where_to_get_it_and_where_to_put_it(own, tmp_path):
    own({"far": {"url": "http://127.0.0.1:9/far.pth", "config": "dino_tiny"}})
    place = tmp_path / "cache" / "weights" / "far" / "far.pth"
    said = f"cannot reach http://127.0.0.1:9/far.pth: .* elsewhere, and put the file at {re.escape(str(place))}"
    with pytest.raises(OSError, match=said) as error:
        local_path("zoo:far")
    assert "\n" not in str(error.value)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"x")
    assert local_path("zoo:far") == str(place)


def test_files_for_browsers_are_put_there_by_hand(own, tmp_path, capsys):
    """Google Drive's: under any name, as the browser calls it."""
    own({})
    name = "align_detr_r50_4scale_12ep_align_loss_released"
    folder = tmp_path / "cache" / "weights" / name
    with ends_in_one_line(
        capsys, f"by a browser alone: fetch AlignDETR.* from https://drive.google.com/.* in {re.escape(str(folder))}"
    ):
        weights.main(["get", name])
    folder.mkdir(parents=True)
    (folder / "model_final (1).pth").write_bytes(b"x")
    assert local_path(f"zoo:{name}") == str(folder / "model_final (1).pth")


@pytest.mark.parametrize(
    "facts, said",
    [
        ({"url": "file:///etc/passwd"}, "expected an address"),
        ({"url": "https://a.b/..%2f..%2fran.pth"}, "not a name of letters"),
        ({"url": "https://a.b/.pth"}, "not a name of letters"),
        ({"url": "https://a.b/x.pth", "companions": ["../config.json"]}, "not a name of letters"),
        ({"url": "https://a.b/x.pth", "companions": "config.json"}, "not a list"),
        ({"url": "https://a.b/x.pth", "sha256": "zz"}, "hexadecimal"),
        ({"url": "https://a.b/x.pth", "sha256": 12345678}, "put it in quotes"),
        ({"url": "https://a.b/x.pth", "licens": "MIT"}, "no such key"),
        ({}, "expected an address"),
        ("https://a.b/x.pth", "is not a mapping"),
    ],
)
def test_a_catalogue_with_a_mistake_is_refused(own, tmp_path, facts, said):
    """Names of files come from it, so none may lead out of the cache."""
    own({"x": facts})
    with pytest.raises(ValueError, match=said):
        zoo.get("x")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", "a\\b", ""])
def test_names_do_not_lead_out_of_the_cache(own, tmp_path, name):
    own({name: {"url": "https://a.b/x.pth", "config": "dino_tiny"}})
    with pytest.raises(ValueError, match="not a name of letters"):
        zoo.get(name)
    own({})
    with pytest.raises(ValueError, match="there are no weights named"):
        zoo.get(name)


@pytest.mark.parametrize("text", ["[1, 2]", "{", "x: !!python/object/apply:os.system ['touch ran']", "- a", "\x00"])
def test_another_file_as_catalogue_is_one_line(own, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    own(text)
    with pytest.raises(ValueError, match="own.yaml is not a catalogue") as error:
        zoo.get("x")
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()
    monkeypatch.setenv("ALIGN_DETR_ZOO", str(tmp_path / "none.yaml"))
    with pytest.raises(FileNotFoundError, match=r"\$ALIGN_DETR_ZOO=.*none.yaml: no such file"):
        zoo.get("x")


def test_companions_lie_beside_the_file(own, server):
    """Hugging Face's config.json has what no tensor says."""
    server.files |= {"/m/model.safetensors": b"x", "/m/config.json": b"{}"}
    url = f"{server.url}/m/model.safetensors"
    own({"m": {"url": url, "config": "dino_tiny", "companions": ["config.json"]}})
    assert zoo.get("m").with_name("config.json").read_bytes() == b"{}"


def test_a_malicious_download_runs_nothing(own, server, tmp_path):
    """The file is read as data, as any other."""
    from test_files import Program

    torch.save({"model": Program(tmp_path / "ran")}, tmp_path / "bad.pth")
    server.files["/bad.pth"] = (tmp_path / "bad.pth").read_bytes()
    own({"bad": {"url": f"{server.url}/bad.pth", "config": "dino_tiny"}})
    with pytest.raises(ValueError, match="refused"):
        look_at("zoo:bad")
    assert not (tmp_path / "ran").exists()


def test_path_manager_reads_names(tiny):
    """detectron2's checkpointer, and detrex's, ask it for the file."""
    path = PathManager.get_local_path("zoo:tiny_dino")
    assert path == local_path("zoo:tiny_dino") and look_at(path).format.name == "original_dino"
    with PathManager.open("zoo:tiny_dino", "rb") as file:
        assert file.read(4) == b"PK\x03\x04"
    assert is_name("hf://a/b/c") and not is_name("https://a.b/c")


@pytest.fixture
def street(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).resize((160, 120)).save(tmp_path / "street.jpg")
    return tmp_path / "street.jpg"


def test_detector_needs_the_name_alone(tiny, street):
    """The entry knows the config, and the file its classes."""
    from align_detr import Detector

    found = next(iter(Detector("zoo:tiny_dino", device="cpu")(street, score_threshold=0.0)))
    assert len(found) and set(found.labels) <= set(classes_of_weights("zoo:tiny_dino").names)
    again = next(iter(Detector(config="dino_tiny", weights="zoo:tiny_dino", device="cpu")(street, score_threshold=0.0)))
    assert (found.boxes == again.boxes).all() and (found.scores == again.scores).all()
    with pytest.raises(ValueError, match="give either, not both"):
        Detector("zoo:tiny_dino", config="dino_tiny")
    with pytest.raises(ValueError, match="does not have the detector DETA"):
        Detector("zoo:deta_r50_5scale_12ep")


def test_demo_takes_a_name(tiny, street, tmp_path, capsys):
    """What README begins with."""
    output = tmp_path / "drawn"
    words = ["--weights", "zoo:tiny_dino", "--input", str(street), "--output", str(output), "train.device=cpu"]
    with pytest.raises(SystemExit) as end:
        demo.main([*words, "--score-threshold", "0", "--json", str(tmp_path / "found.json")])
    assert end.value.code == 0 and (output / "street.png").is_file()
    assert json.loads((tmp_path / "found.json").read_text())


def test_demo_of_a_file_of_the_hub_needs_a_config(street, capsys):
    with ends_in_one_line(capsys, "hf://org/name/x.bin is a file of weights: give the config"):
        demo.main(["--weights", "hf://org/name/x.bin", "--input", str(street)])


def test_export_and_inspect_take_a_name(tiny, tmp_path, capsys):
    export.main(["zoo:tiny_dino", "--output", str(tmp_path / "a.safetensors")])
    export.main(["--checkpoint", "zoo:tiny_dino", "--output", str(tmp_path / "b.safetensors")])
    one, two = (look_at(tmp_path / name, data=True).file.state for name in ("a.safetensors", "b.safetensors"))
    assert one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    export_weights.main(["--checkpoint", "zoo:tiny_dino", "--output", str(tmp_path / "c.pth"), "--format", "mmdet"])
    assert recognise(look_at(tmp_path / "c.pth").file.state).name == "mmdet_dino"
    capsys.readouterr()
    weights.main(["inspect", "zoo:tiny_dino"])
    assert "IDEA-Research's DINO" in capsys.readouterr().out
    weights.main(["inspect", str(tmp_path / "a.safetensors")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("model      projects.dino.modeling") and lines[-1].startswith("classes    80: person, ")


SMALL = ("train.device=cpu", "dataloader.test.num_workers=0", "train.output_dir=out")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`folder("a", "b", "c")` writes ten drawn images to `mine`, whose classes have these names."""
    monkeypatch.chdir(tmp_path)

    def draw(*names):
        make_data.main(["--synthetic", "--train", "8", "--val", "2", "--output", "mine"])
        for path in (tmp_path / "mine").glob("annotations/*.json"):
            content = json.loads(path.read_text())
            for category, name in zip(content["categories"], names, strict=True):
                category["name"] = name
            path.write_text(json.dumps(content))
        for logger in LOGGERS:
            monkeypatch.setattr(logging.getLogger(logger), "handlers", [])

    return draw


def test_training_on_a_folder_begins_with_a_name(tiny, folder, tmp_path, capsys):
    """`align-detr train --data FOLDER train.init_checkpoint=zoo:NAME`: the entry's config, and COCO's rows by name."""
    folder("dog", "helmet", "person")
    small = ["train.max_iter=1", "dataloader.train.num_workers=0", "dataloader.train.total_batch_size=2"]
    train.main(["--data", "mine", "train.init_checkpoint=zoo:tiny_dino", "train.report.enabled=False", *small, *SMALL])
    out = capsys.readouterr().out
    assert "Config: dino_tiny" in out and "initial weights for helmet" in out
    assert "Converted tiny-dino.pth (IDEA-Research" in out and "AP" in out
    trained = look_at(tmp_path / "out" / "model_final.pth", data=True)
    rows = dict(zip(trained.classes, trained.file.state["class_embed.0.weight"], strict=True))
    theirs = tiny["class_embed.0.weight"]
    for name, number in {"dog": 16, "person": 0}.items():
        assert (rows[name] - theirs[number]).abs().max() < 0.01
    train.main(["out", "--resume", "train.max_iter=2"])  # its config.yaml has the settings of the weights
    config = str(tmp_path / "out/config.py")
    train.main([config, "--resume", "train.max_iter=3"])
    assert torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["iteration"] == 2


def test_evaluation_takes_a_name(tiny, folder, tmp_path, monkeypatch, capsys):
    """By command and by function; COCO's dog is the data's."""
    folder("dog", "car", "person")
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path / "mine"))
    train.main(["--config-file", "dino_tiny", "--eval-only", "train.init_checkpoint=zoo:tiny_dino", *SMALL])
    assert "model.num_classes 3 -> 80" in capsys.readouterr().out
    results = detrkit.evaluate(load_config("dino_tiny", list(SMALL)), "zoo:tiny_dino")
    assert {"AP", "AP-dog"} <= set(results["bbox"])


def test_a_training_that_cannot_begin_says_so_in_one_line(own, tmp_path, capsys):
    own({"far": {"url": "http://127.0.0.1:9/far.pth", "config": "dino_tiny"}})
    words = ["--config-file", "dino_tiny", "train.init_checkpoint=zoo:far", f"train.output_dir={tmp_path / 'out'}"]
    with ends_in_one_line(capsys, "^error: cannot reach http://127.0.0.1:9/far.pth"):
        train.main([*words, "--eval-only", "train.device=cpu"])
    with ends_in_one_line(capsys, "^error: zoo:deta_r50_5scale_12ep cannot be used: .* the detector DETA"):
        train.main(["--data", str(tmp_path), "train.init_checkpoint=zoo:deta_r50_5scale_12ep"])


class Missing(Exception):
    """In place of the hub's error for a file that a repository does not have."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A package huggingface_hub whose repositories are folders below `hub`, and what it was asked for."""
    asked = []

    def hf_hub_download(repository, name, revision=None):
        asked.append((repository, name, revision))
        path = tmp_path / "hub" / repository / name
        if not path.is_file():
            raise Missing(f"404 Client Error\nno {name}")
        return str(path)

    package, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    package.hf_hub_download, errors.EntryNotFoundError = hf_hub_download, Missing
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return asked


def test_files_of_the_hub_are_read_with_the_config_beside_them(hub, tmp_path):
    folder = tmp_path / "hub" / "org" / "name"
    folder.mkdir(parents=True)
    random_file("hf_conditional_detr", folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    assert look_at("hf://org/name/pytorch_model.bin").format.name == "hf_conditional_detr"
    assert hub == [("org/name", "config.json", None), ("org/name", "pytorch_model.bin", None)]
    local_path("hf://org/name@v1.0/pytorch_model.bin")
    assert hub[-1] == ("org/name", "pytorch_model.bin", "v1.0")
    (folder / "config.json").unlink()
    local_path("hf://org/name/pytorch_model.bin")
    with pytest.raises(OSError, match="fetch https://huggingface.co/org/name/resolve/main/x.pth elsewhere") as error:
        local_path("hf://org/name/x.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["hf://a/b", "hf://a/../b", "hf://a/b/../../c", "hf://../../c", "hf:///a/b/c"])
def test_other_addresses_of_the_hub_are_refused(hub, name):
    with pytest.raises(ValueError, match="expected hf://"):
        local_path(name)
    assert hub == []


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r'pip install "\.\[hub\]"'):
        local_path("hf://org/name/x.pth")


def test_every_prefix_is_a_handler_of_detectron2():
    assert set(names.GETTERS) == {"zoo:", "hf://"}


def test_models_to_compare_have_the_overrides_of_their_entry(tmp_path, monkeypatch):
    """Protects from figures of another model: some weights need more than the config's name."""
    entry = {"url": "http://127.0.0.1:9/small.pth", "config": "dino_tiny", "overrides": ["model.num_queries=7"]}
    (tmp_path / "zoo.yaml").write_text(json.dumps({"small": entry}))
    monkeypatch.setenv("ALIGN_DETR_ZOO", str(tmp_path / "zoo.yaml"))
    args = command_line.parse(analyze.parser(), ["dino_tiny", "--compare", "zoo:small", "train.device=cpu"])
    (plain, small), _ = analyze.read_candidates(args)
    assert (plain.cfg.model.num_queries, small.cfg.model.num_queries) == (30, 7)
    assert small.checkpoint == "zoo:small" and small.cfg.train.device == "cpu"
