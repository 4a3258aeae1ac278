"""Shares of several datasets: frequencies, exact resumption, two processes, the command line, and mistakes."""

import json
import math
from collections import Counter
from itertools import islice

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from detrkit import load_config, register_coco
from detrkit.commands import make_data
from detrkit.commands import train as train_net
from detrkit.training import stream
from detrkit.training.builders import build_loader
from detrkit.training.dataset_shares import dataset_shares, mixing_factors
from detrkit.training.stream import ResumableLoader

NAMES, SIZES = ("a", "b", "c"), (4, 9, 40)


def one_by_one(stream, collate):
    return (collate([example]) for example in stream)


def loader_of(weights, factors=None):
    """A stream of the numbers of 53 items, of which the first 4 are of dataset a, 9 of b, 40 of c."""
    factors = mixing_factors(SIZES, dataset_shares(NAMES, SIZES, weights), factors)
    return ResumableLoader([{"n": n} for n in range(sum(SIZES))], None, one_by_one, factors=factors)


def numbers_of(batches, count):
    return [batch[0]["n"] for batch in islice(batches, count)]


def by_dataset(numbers):
    ends = (4, 13, 53)
    return Counter(next(name for name, end in zip(NAMES, ends, strict=True) if n < end) for n in numbers)


@pytest.mark.parametrize("weights, shares", [
    ("size", [4 / 53, 9 / 53, 40 / 53]),
    ("equal", [1 / 3] * 3),
    ("sqrt", [size / (5 + math.sqrt(40)) for size in (2, 3, math.sqrt(40))]),
    ([2, 1, 1.0], [0.5, 0.25, 0.25]),
])  # fmt: skip
def test_frequencies(monkeypatch, weights, shares):
    """Each epoch has the share of each dataset to within one draw, and each image floor or ceil of its own share. Over
    all epochs no image is further from it than four standard deviations of as many independent draws."""
    monkeypatch.setattr(stream.comm, "shared_random_seed", lambda: 7)
    assert dataset_shares(NAMES, SIZES, weights) == pytest.approx(shares)
    epochs, size = 30, sum(SIZES)
    numbers = numbers_of(iter(loader_of(weights)), epochs * size)
    expected = [share * size / part for part, share in zip(SIZES, shares, strict=True) for _ in range(part)]
    for start in range(0, len(numbers), size):
        epoch = numbers[start : start + size]
        counts, images = by_dataset(epoch), Counter(epoch)
        assert all(abs(counts[name] - share * size) < 1 for name, share in zip(NAMES, shares, strict=True))
        assert all(abs(images[n] - mean) < 1 for n, mean in enumerate(expected))
    images = Counter(numbers)
    for n, mean in enumerate(expected):
        assert abs(images[n] - epochs * mean) < 4 * math.sqrt(epochs * (mean % 1) * (1 - mean % 1)) + 1e-6


def test_size_is_each_image_once():
    numbers = numbers_of(iter(loader_of("size")), 106)
    assert Counter(numbers[:53]) == Counter(numbers[53:]) == Counter(range(53)) and numbers[:53] != numbers[53:]


def test_rare_classes_stay_rare_within_their_dataset():
    """Repeat factors keep their ratios within a dataset; the shares are those of the datasets."""
    factors = [3.0, 1, 1, 1] + [1.0] * 9 + [2.0] * 40
    mixed = mixing_factors(SIZES, [0.5, 0.25, 0.25], factors)
    assert sum(mixed) == pytest.approx(sum(factors))
    assert sum(mixed[:4]) == pytest.approx(sum(factors) / 2) and mixed[0] / mixed[1] == pytest.approx(3)
    assert sum(mixed[4:13]) == pytest.approx(sum(factors) / 4)


def test_resumes_exactly():
    first = loader_of("equal")
    batches = iter(first)
    numbers_of(batches, 70)
    state, rest = first.state_dict(), numbers_of(batches, 100)
    second = loader_of("equal")
    assert second.load_state_dicts([json.loads(json.dumps(state))]) == ""
    assert numbers_of(iter(second), 100) == rest


@pytest.mark.parametrize("weights", ["equal", [1, 5, 2]])
def test_two_processes_share_one_stream(monkeypatch, weights):
    """They read alternate positions of the stream that one process would read, and resume as one."""
    monkeypatch.setattr(stream.comm, "shared_random_seed", lambda: 7)
    whole = numbers_of(iter(loader_of(weights)), 212)
    parts, states = [], []
    monkeypatch.setattr(stream.comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(stream.comm, "get_rank", lambda rank=rank: rank)
        loader = loader_of(weights)
        parts.append(numbers_of(iter(loader), 60))
        states.append(loader.state_dict())
    assert [n for pair in zip(*parts, strict=True) for n in pair] == whole[:120]
    for rank in range(2):
        monkeypatch.setattr(stream.comm, "get_rank", lambda rank=rank: rank)
        again = loader_of(weights)
        assert again.load_state_dicts(states) == ""
        assert numbers_of(iter(again), 46) == whole[120 + rank :: 2]


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """`own_small` with 2 images and `own_large` with 6; the classes of `own_other` have other names."""
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path / "small"))
    for name, count in (("small", 2), ("large", 6), ("other", 2)):
        make_data.main(["--synthetic", "--train", str(count), "--val", "1", "--output", str(tmp_path / name)])
        file = tmp_path / name / "annotations/instances_train2017.json"
        if name == "other":
            content = json.loads(file.read_text())
            content["categories"] = [{**entry, "name": f"my {entry['name']}"} for entry in content["categories"]]
            file.write_text(json.dumps(content))
        register_coco(f"own_{name}", file, tmp_path / name / "train2017")
    yield tmp_path
    for name in ("own_small", "own_large", "own_other"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config_of(*overrides, names="own_small,own_large"):
    words = [f"dataloader.train.dataset.names=[{names}]", "dataloader.train.num_workers=0", "train.device=cpu"]
    return load_config("align_detr_tiny", [*words, "dataloader.train.total_batch_size=2", *overrides])


def test_loader_of_a_config(datasets):
    """The images of the batches are half of the one, half of the other dataset."""
    loader = build_loader(config_of("train.dataset_shares=equal"), "train")
    found = [example["file_name"] for batch in islice(loader, 16) for example in batch]
    counts = Counter(str(datasets / "small") in name for name in found)
    assert abs(counts[True] - counts[False]) <= 10 and len(set(found)) == 7  # by size it would be 14; one is empty


@pytest.mark.parametrize("override, message", [
    ("train.dataset_shares=even", r"train.dataset_shares=even: give size, sqrt, equal, or a list of numbers"),
    ("train.dataset_shares=3", r"train.dataset_shares=3: give size, sqrt, equal, or a list"),
    ("train.dataset_shares=[1]", r"\[1\] has 1 numbers for 2 datasets \(own_small, own_large\): give one each"),
    ("train.dataset_shares=[1,0]", r"\[1, 0\]: give numbers above 0"),
    ("train.dataset_shares=[1,.inf]", r"give numbers above 0"),
])  # fmt: skip
def test_mistakes(datasets, override, message):
    with pytest.raises(ValueError, match=message):
        build_loader(config_of(override), "train")


def test_other_classes_are_refused(datasets, capsys):
    """By the loader, and from the command line before anything is built."""
    cfg = config_of("train.dataset_shares=sqrt", names="own_small,own_other")
    message = "different classes: own_small .*circle.*; own_other .*my circle.* the same list"
    with pytest.raises(ValueError, match=message):
        build_loader(cfg, "train")
    words = ["dataloader.train.dataset.names=[own_small,own_other]", f"train.output_dir={datasets / 'run'}"]
    with pytest.raises(SystemExit):
        train_net.main(["align_detr_tiny", *words, "train.dataset_shares=equal", "train.device=cpu"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "but the model's are circle, square, triangle (those of own_small): use the same names" in line


def test_a_sampler_of_the_config_is_refused(datasets):
    """It would choose the images, and the shares would have no effect."""
    cfg = config_of("train.dataset_shares=equal")
    cfg.dataloader.train.sampler = {"_target_": "detectron2.data.samplers.TrainingSampler", "size": 8}
    with pytest.raises(ValueError, match="build_detection_train_loader without a sampler"):
        build_loader(cfg, "train")
