"""Every config file: its keys, saving and loading; slow tests train, evaluate and resume it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import detrex
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from PIL import Image

from align_detr._platform import is_upstream

ROOT = Path(__file__).resolve().parents[2]
ROWS = sorted((ROOT / "projects").glob("*/configs/*.py"))
# test_lite0.py and test_backbones.py train the others.
ELSEWHERE = ("bccd", "lite0", "swin", "vitdet", "timm")
ON_COCO = [row for row in ROWS if not any(name in row.stem for name in ELSEWHERE)]
CONFIGS = sorted([*ROWS, *(ROOT / "configs/baselines").glob("*.py")])
# The first config of each model: others differ in schedule or data alone.
MODELS = json.loads((ROOT / "tests/upstream/recorded.json").read_text(encoding="utf-8"))["models"]
NO_COCO_CLASS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # of the numbers up to 90
KEYS = {"dataloader", "lr_multiplier", "model", "optimizer", "train"}
SMALL = (
    "dataloader.train.mapper.augmentation.1.short_edge_length=[320]",
    "dataloader.train.mapper.augmentation.1.max_size=400",
    "dataloader.train.mapper.augmentation_with_crop=null",
    "dataloader.test.mapper.augmentation.0.short_edge_length=320",
    "dataloader.test.mapper.augmentation.0.max_size=400",
)
FEW = (
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.device=cpu",
    "train.log_period=1",
    "train.checkpointer.period=1",
)


def name_of(path):
    return path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_config_has_the_five_keys_and_no_other(path, recorded_configs):
    """A helper node at the top level becomes a key, and detectron2, saving the config, stops at its interpolations."""
    keys = {key.split(".")[0] for key in recorded_configs[path.stem]}
    assert keys - {"parameters"} == KEYS


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_there_are_as_many_scores_as_detections(path, recorded_configs):
    """Otherwise the first evaluation would end the training, as in detrex."""
    cfg = recorded_configs[path.stem]
    queries = cfg.get("model.num_queries", cfg.get("model.num_queries_one2one"))
    assert cfg["model.select_box_nums_for_evaluation"] <= queries * cfg["model.num_classes"]


@pytest.mark.parametrize("path", [path for path in ROWS if path.stem in MODELS], ids=name_of)
def test_a_saved_config_is_the_config(path, tmp_path):
    """The YAML in a run's folder repeats the run: loaded, it saves as the same text again and builds the same model."""
    saved, again = tmp_path / "config.yaml", tmp_path / "again.yaml"
    LazyConfig.save(LazyConfig.load(str(path)), str(saved))
    loaded = LazyConfig.load(str(saved))
    LazyConfig.save(loaded, str(again))
    assert saved.read_text() == again.read_text()
    assert not list(tmp_path.glob("*.pkl")), "detectron2 could not write it as YAML"
    if any(small in path.stem for small in ("tiny", "bccd", "lite0")):
        loaded.model.device = "cpu"
        original = LazyConfig.load(str(path))
        original.model.device = "cpu"
        shapes = [{n: t.shape for n, t in instantiate(c.model).state_dict().items()} for c in (loaded, original)]
        assert shapes[0] == shapes[1]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Four noisy photographs in COCO's layout and with its 80 classes, as training and as validation set."""
    root = tmp_path_factory.mktemp("datasets")
    rng = np.random.default_rng(0)
    images, objects = [], []
    for split in ("train2017", "val2017"):
        (root / "coco" / split).mkdir(parents=True)
    (root / "coco/annotations").mkdir()
    for i, (width, height) in enumerate([(400, 320), (320, 400), (360, 320), (400, 320)], start=1):
        images.append({"id": i, "file_name": f"{i:012d}.jpg", "width": width, "height": height})
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        for split in ("train2017", "val2017"):
            Image.fromarray(pixels).save(root / "coco" / split / images[-1]["file_name"])
        for j in range(3):
            box = [40 + 60 * j, 50, 80 + 10 * j, 120]
            about = {"id": 10 * i + j, "image_id": i, "category_id": 1 + j, "iscrowd": 0}
            objects.append({**about, "bbox": box, "area": box[2] * box[3]})
    numbers = [i for i in range(1, 91) if i not in NO_COCO_CLASS]
    # detectron2 knows COCO's names, and takes no others under its names for the datasets.
    names = MetadataCatalog.get("coco_2017_train").get("thing_classes") or [f"class {i}" for i in numbers]
    categories = [{"id": i, "name": name} for i, name in zip(numbers, names, strict=True)]
    content = {"images": images, "annotations": objects, "categories": categories}
    for split in ("train2017", "val2017"):
        (root / f"coco/annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def environment(photographs, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(photographs))
    monkeypatch.setenv("TINY_COCO_ROOT", str(photographs / "drawn"))
    monkeypatch.setenv("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT / "projects"), os.environ.get("PYTHONPATH")]))
    )
    return photographs


def run(tool, *arguments):
    done = subprocess.run([sys.executable, str(tool), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout


def overrides(path, folder, tame):
    """Small images, and initial weights with which an untrained ResNet-101 with frozen norms stays finite."""
    if "tiny" in path.stem:
        coco = "[coco_2017_train]", "[coco_2017_val]"
        data = [f"dataloader.{split}.dataset.names={name}" for split, name in zip(("train", "test"), coco, strict=True)]
        return [*FEW, *data, "dataloader.evaluator.dataset_name=coco_2017_val", "model.num_classes=80"]
    cfg = LazyConfig.load(str(path))
    with torch.device("meta"):
        cfg.model.device = "meta"
        weights = instantiate(cfg.model).state_dict()
    norms = {n: torch.full(w.shape, 0.1) for n, w in weights.items() if n.endswith("conv3.norm.weight")}
    torch.save({"model": norms}, tame)
    return [*FEW, *SMALL, f"train.init_checkpoint={tame}"]


@pytest.mark.slow
@pytest.mark.parametrize("path", ON_COCO, ids=name_of)
def test_a_row_trains_evaluates_and_resumes(path, environment, tmp_path):
    """Run the documented command: two iterations, an evaluation, then resume for a third iteration."""
    options = [*overrides(path, tmp_path, tmp_path / "tame.pth"), f"train.output_dir={tmp_path}/run"]
    tool, config = ROOT / "tools/train_net.py", ("--config-file", path)
    out = run(tool, *config, *options, "train.max_iter=2")
    assert "copypaste: Task: bbox" in out
    run(tool, *config, "--resume", *options, "train.max_iter=3")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    losses = {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}
    assert losses.keys() == {0, 1, 2} and all(np.isfinite(list(losses.values())))
    assert torch.load(tmp_path / "run/model_final.pth", weights_only=True)["iteration"] == 2


@pytest.mark.slow
@pytest.mark.upstream("it is detrex's tool")
@pytest.mark.parametrize("path", ON_COCO, ids=name_of)
def test_a_row_under_detrexs_own_tool(path, environment, tmp_path):
    """detrex's own tools/train_net.py trains, evaluates and resumes our configs."""
    tool = Path(detrex.__file__).parents[1] / "tools/train_net.py"
    options = [*overrides(path, tmp_path, tmp_path / "tame.pth"), f"train.output_dir={tmp_path}/run"]
    options += ["dataloader.test.num_workers=0"]
    assert "copypaste: Task: bbox" in run(tool, "--config-file", path, *options, "train.max_iter=1")
    run(tool, "--config-file", path, "--resume", *options, "train.max_iter=2")
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.slow
@pytest.mark.parametrize("path", [row for row in ROWS if "tiny" in row.stem], ids=name_of)
def test_a_tiny_row_in_two_processes(path, environment, tmp_path):
    """Distributed training through the command line, on the CPU by gloo: trained, evaluated, resumed."""
    options = [*overrides(path, tmp_path, None), f"train.output_dir={tmp_path}"]
    config = ("--config-file", path, "--num-gpus", 2)
    assert "copypaste: Task: bbox" in run(ROOT / "tools/train_net.py", *config, *options, "train.max_iter=2")
    run(ROOT / "tools/train_net.py", *config, "--resume", *options, "train.max_iter=3")
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 2


def test_the_platform_is_the_one_asked_for():
    """The forced platform is in use; comparisons of the two platforms rely on it."""
    asked = os.environ.get("ALIGN_DETR_PLATFORM")
    assert asked is None or is_upstream() == (asked == "upstream")
