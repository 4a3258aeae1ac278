"""Co-DINO on a small made dataset in LVIS's format, from the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from .test_co_dino import CONFIGS, load
from .test_command_line import SMALL

CONFIG = '''
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_lvis_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.evaluation import LVISEvaluator

from align_detr.modeling import FederatedClasses

if "small_lvis" not in DatasetCatalog.list():
    register_lvis_instances("small_lvis", {{}}, "{folder}/lvis.json", "{folder}")
_base = LazyConfig.load("{base}")
dataloader, lr_multiplier = _base.dataloader, _base.lr_multiplier
model, optimizer, train = _base.model, _base.optimizer, _base.train
model.num_classes = 6
model.criterion.federated = L(FederatedClasses)(number=3, dataset="small_lvis")
dataloader.train.dataset.names = dataloader.test.dataset.names = "small_lvis"
dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
    repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${{dataloader.train.dataset}}", repeat_thresh=0.5
    )
)
dataloader.evaluator = L(LVISEvaluator)(dataset_name="small_lvis", max_dets_per_image=300)
'''


def write_dataset(folder):
    random = np.random.default_rng(0)
    (folder / "val2017").mkdir(parents=True)
    names = ["r", "r", "c", "c", "f", "f"]
    content = {"images": [], "annotations": [], "categories": []}
    for number, frequency in enumerate(names, 1):
        entry = {"id": number, "name": f"class {number}", "frequency": frequency, "image_count": 10**number}
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
            box = [x, y, 30, 30]
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {"id": number, "image_id": image, "category_id": kind, "bbox": box, "area": 900, "segmentation": []}
            )
    (folder / "lvis.json").write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.engine("detectron2 reads only files with LVIS's own 1203 classes")
def test_the_command_line_trains_and_evaluates(run_tool, tmp_path):
    """Federated loss and repeat-factor sampling in training; AP of rare, common and frequent classes at the end."""
    pytest.importorskip("lvis")
    write_dataset(tmp_path / "lvis")
    base = (CONFIGS / "co_dino_tiny.py").as_posix()
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(folder=(tmp_path / "lvis").as_posix(), base=base))
    output = run_tool("train_net.py", "--config-file", config, f"train.output_dir={tmp_path / 'out'}", *SMALL)
    assert "AP,AP50,AP75,APs,APm,APl,APr,APc,APf" in output
    assert (tmp_path / "out/model_final.pth").exists()


def test_settings_of_the_row():
    """1203 classes, 300 detections, LVIS's splits."""
    cfg = load("co_dino_r50_5scale_12ep_lvis")
    assert cfg.model.num_classes == 1203 and cfg.model.select_box_nums_for_evaluation == 300
    assert (cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names) == ("lvis_v1_train", "lvis_v1_val")
    assert cfg.dataloader.evaluator.max_dets_per_image == 300
