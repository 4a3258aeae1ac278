"""Co-DINO on a small made dataset in LVIS's format, from the command line; the rows on LVIS."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

from align_detr._platform import is_upstream
from detrkit.config.exported import input_size
from detrkit.runtime.numpy_float import numpy_float

from .test_co_dino import CONFIGS, load
from .test_command_line import SMALL

COUNT = 1203  # classes: detectron2 reads only files with all of LVIS's
METADATA = '__import__("detectron2.data.datasets.lvis", fromlist=["x"]).get_lvis_instances_meta("lvis_v1_small")'

CONFIG = '''
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_lvis_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.evaluation import LVISEvaluator

from align_detr.modeling import FederatedClasses

if "lvis_v1_small" not in DatasetCatalog.list():
    register_lvis_instances("lvis_v1_small", {metadata}, "{folder}/lvis.json", "{folder}/")
_base = LazyConfig.load("{base}")
dataloader, lr_multiplier = _base.dataloader, _base.lr_multiplier
model, optimizer, train = _base.model, _base.optimizer, _base.train
model.num_classes = {count}
model.criterion.federated = L(FederatedClasses)(number=50, dataset="lvis_v1_small")
dataloader.train.dataset.names = dataloader.test.dataset.names = "lvis_v1_small"
dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
    repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${{dataloader.train.dataset}}", repeat_thresh=0.5
    )
)
dataloader.evaluator = L(LVISEvaluator)(dataset_name="lvis_v1_small", output_dir=None, max_dets_per_image=300)
train.mix.copy_paste = 0.5
'''


def write_dataset(folder):
    """Six images with two classes each, of six frequent, common and rare ones; some unchecked or annotated in part."""
    random = np.random.default_rng(0)
    (folder / "val2017").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": []}
    for number in range(1, COUNT + 1):
        entry = {"id": number, "name": f"class {number}", "frequency": "rcf"[number % 3], "image_count": number}
        content["categories"].append(entry)
    for image in range(1, 7):
        Image.fromarray(random.integers(0, 256, (96, 128, 3), np.uint8)).save(folder / f"val2017/{image}.png")
        kinds = {(image % 6) + 1, 5}
        content["images"].append(
            {
                "id": image,
                "height": 96,
                "width": 128,
                "coco_url": f"http://images.cocodataset.org/val2017/{image}.png",
                "neg_category_ids": sorted(set(range(1, 7)) - kinds)[:2],
                "not_exhaustive_category_ids": [5] if image == 2 else [],
            }
        )
        for kind in sorted(kinds):
            x, y = random.integers(0, 60, 2).tolist()
            entry = {"id": len(content["annotations"]) + 1, "image_id": image, "category_id": kind, "area": 900}
            polygon = [x, y, x + 30, y, x + 30, y + 30, x, y + 30]
            content["annotations"].append({**entry, "bbox": [x, y, 30, 30], "segmentation": [polygon]})
    (folder / "lvis.json").write_text(json.dumps(content))


def figures_of_the_package(lvis, annotations, results):
    """What the package says of a results file, in %, by its own reading."""
    truth = lvis.LVIS(str(annotations))
    evaluation = lvis.LVISEval(truth, lvis.LVISResults(truth, str(results), max_dets=300), "bbox")
    with numpy_float():
        evaluation.run()
    return {name: 100 * value for name, value in evaluation.get_results().items()}


@pytest.mark.slow
def test_the_command_line_trains_and_evaluates(run_tool, tmp_path):
    """Federated loss, repeat-factor sampling and pasted objects in training; the figures at the end, with test-time
    augmentation too, are those of the lvis package for the written detections."""
    lvis = pytest.importorskip("lvis")
    folder = tmp_path / "lvis"
    write_dataset(folder)
    text = CONFIG.format(
        folder=folder.as_posix(),
        base=(CONFIGS / "co_dino_tiny.py").as_posix(),
        count=COUNT,
        metadata=METADATA if is_upstream() else "{}",
    )
    config, out = tmp_path / "config.py", tmp_path / "out"
    config.write_text(text)
    trained = ["train_net.py", "--config-file", config, f"train.output_dir={out}", *SMALL]
    with_tta = ["eval", config, "--checkpoint", out / "model_final.pth", f"train.output_dir={out}", "--tta", *SMALL]
    for command in (trained, with_tta):
        output = run_tool(*command)
        lines = [line.partition("copypaste: ")[2].split(",") for line in output.splitlines() if "copypaste: " in line]
        names, values = lines[-2:]
        assert names == ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
        expected = figures_of_the_package(lvis, folder / "lvis.json", out / "lvis_instances_results.json")
        for name, value in zip(names, values, strict=True):
            assert float(value) == pytest.approx(expected[name], abs=1e-4) or expected[name] < 0, name


ROWS = {
    "co_dino_swin_large_5scale_36ep_lsj_lvis": (1280, 300, 0.3, 2e-4, 270000),
    "co_dino_swin_large_5scale_16ep_o365_lvis": (1536, 1000, 0.3, 1e-4, 120000),
    "co_dino_vit_large_5scale_16ep_lvis": (1536, 1000, 0.3, 5e-5, 120000),
}


@pytest.mark.parametrize("name", ["co_dino_r50_5scale_12ep_lvis", *ROWS])
def test_settings_of_the_rows(name):
    """1203 classes, 900 queries, 300 evaluated detections, repeat factors, LVIS's splits; the published models were
    trained without a federated loss."""
    cfg = load(name)
    assert cfg.model.num_classes == 1203 and cfg.model.num_queries == 900
    assert cfg.model.criterion.get("federated") is None
    assert (cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names) == ("lvis_v1_train", "lvis_v1_val")
    assert cfg.dataloader.evaluator.max_dets_per_image == 300
    assert cfg.dataloader.train.sampler.repeat_factors.repeat_thresh == 0.001
    if name not in ROWS:
        return
    side, detections, drop_path, rate, iterations = ROWS[name]
    assert cfg.model.canvas_size == side and input_size(cfg) == (side, side)
    assert cfg.model.select_box_nums_for_evaluation == detections
    assert cfg.model.backbone.drop_path_rate == drop_path
    assert (cfg.optimizer.lr, cfg.train.max_iter, cfg.train.mix.copy_paste) == (rate, iterations, 0.5)
    with torch.device("meta"):
        cfg.model.device = "meta"
        model = instantiate(cfg.model)
    assert model.canvas_value == 114 and model.class_embed[0].weight.shape[0] == 1203
    rcnn = model.collaboration.heads["faster_rcnn"]
    assert rcnn.box_pred.weight.shape == (4 * 1203, 1024) and len(rcnn.convs) == 0
    if "vit" in name:
        blocks, everywhere = model.backbone.blocks, model.backbone.map_rope
        assert [n for n, block in enumerate(blocks) if block.attn.rope is everywhere] == [*range(2, 24, 3)]
        assert model.backbone.rope_win.freqs_cos.shape[0] == 16 * 16
        assert cfg.optimizer.weight_decay == 0.05


def test_jitter_gives_the_canvas(tmp_path):
    """Training images are squares as large as the canvas, with its gray around the image, before normalising."""
    file = tmp_path / "a.png"
    Image.fromarray(np.full((60, 90, 3), 200, np.uint8)).save(file)
    annotation = {"bbox": [10, 10, 50, 30], "bbox_mode": 0, "category_id": 0, "iscrowd": 0}
    image = {"file_name": str(file), "height": 60, "width": 90, "image_id": 1, "annotations": [annotation]}
    cfg = load("co_dino_r50_5scale_12ep_lsj")
    mapper = instantiate(cfg.dataloader.train.mapper)
    values = set()
    for seed in range(4):
        np.random.seed(seed)
        example = mapper(image)
        assert tuple(example["image"].shape) == (3, 1024, 1024) and cfg.model.canvas_size == 1024
        values |= set(example["image"].unique().tolist())
    assert values == {114, 200}
    assert cfg.train.mix.copy_paste > 0
