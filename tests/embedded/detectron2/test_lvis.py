"""LVIS: reading, repeat-factor sampling, and the lvis package's own figures on a made dataset."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_lvis_json, register_lvis_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.structures import Boxes, Instances

# Category ids with gaps: rare, common, frequent, frequent.
CATEGORIES = {3: "r", 5: "c", 8: "f", 9: "f"}
COUNTS = {3: 2, 5: 40, 8: 500, 9: 900}


def made(folder, images=12, seed=0):
    """Write annotations in which some classes of an image are absent, unchecked, or annotated in part."""
    random = np.random.default_rng(seed)
    content = {"images": [], "annotations": [], "categories": []}
    for id_, frequency in CATEGORIES.items():
        content["categories"].append(
            {"id": id_, "name": f"class_{id_}", "frequency": frequency, "image_count": COUNTS[id_]}
        )
    for number in range(1, images + 1):
        present = set(random.choice(list(CATEGORIES), 2, replace=False).tolist())
        absent = sorted(set(CATEGORIES) - present)
        content["images"].append(
            {
                "id": number,
                "height": 100,
                "width": 120,
                "coco_url": f"http://images.cocodataset.org/val2017/{number:04}.jpg",
                "neg_category_ids": absent[:1],
                "not_exhaustive_category_ids": sorted(present)[:1] if number % 3 == 0 else [],
            }
        )
        for category in sorted(present):
            for _ in range(int(random.integers(1, 4))):
                x, y = random.uniform(0, 60, 2).tolist()
                width, height = random.uniform(8, 40, 2).tolist()
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": number,
                        "category_id": category,
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "segmentation": [[x, y, x + width, y, x + width, y + height]],
                    }
                )
    path = folder / "lvis.json"
    path.write_text(json.dumps(content))
    return path, content


@pytest.fixture
def dataset(tmp_path):
    path, content = made(tmp_path)
    name = f"made_lvis_{tmp_path.name}"
    register_lvis_instances(name, {}, str(path), str(tmp_path / "coco"))
    yield name, path, content
    DatasetCatalog.remove(name)


def test_reading(dataset, tmp_path):
    """Images at the end of their URL, contiguous classes, lists of checked classes, counts for the federated loss."""
    name, _, content = dataset
    dicts = DatasetCatalog.get(name)
    assert len(dicts) == 12 and sum(len(x["annotations"]) for x in dicts) == len(content["annotations"])
    assert dicts[0]["file_name"] == str(tmp_path / "coco" / "val2017" / "0001.jpg")
    assert dicts[2]["neg_category_ids"] == content["images"][2]["neg_category_ids"]
    assert dicts[2]["not_exhaustive_category_ids"] == content["images"][2]["not_exhaustive_category_ids"] != []
    numbers = {id_: number for number, id_ in enumerate(CATEGORIES)}
    first = next(a for a in content["annotations"] if a["image_id"] == 1)
    assert dicts[0]["annotations"][0]["category_id"] == numbers[first["category_id"]]
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == [f"class_{id_}" for id_ in CATEGORIES] and metadata.evaluator_type == "lvis"
    assert [entry["image_count"] for entry in metadata.class_image_count] == list(COUNTS.values())


def test_registered_names():
    """The splits of LVIS v1 as detectron2 names them."""
    splits = ("train", "val", "test_dev", "test_challenge")
    assert {f"lvis_v1_{split}" for split in splits} <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("lvis_v1_val").json_file.endswith("lvis/lvis_v1_val.json")


@pytest.mark.parametrize("text", ["[]", "{", '{"images": [], "annotations": [{}], "categories": []}'])
def test_other_formats_are_reported(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="x.json is not in LVIS's format"):
        load_lvis_json(str(tmp_path / "x.json"), "images")


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"annotation file .*none.json does not exist"):
        load_lvis_json(str(tmp_path / "none.json"), "images")


def detections(content, seed=1):
    """Per image: shifted ground truth of any class, false positives, and classes that nobody checked."""
    random = np.random.default_rng(seed)
    ids = list(CATEGORIES)
    for image in content["images"]:
        boxes, classes = [], []
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"] and random.random() < 0.8:
                x, y, width, height = annotation["bbox"]
                dx, dy = random.normal(0, 2, 2)
                boxes.append([x + dx, y + dy, x + dx + width, y + dy + height])
                classes.append(ids.index(annotation["category_id"]))
        for number in range(len(ids)):
            x, y = random.uniform(0, 60, 2)
            boxes.append([x, y, x + 20, y + 20])
            classes.append(number)
        instances = Instances((100, 120), pred_boxes=Boxes(torch.tensor(boxes)))
        instances.scores = torch.tensor(random.uniform(0, 1, len(boxes)))
        instances.pred_classes = torch.tensor(classes)
        yield image["id"], instances


@pytest.mark.parametrize("most", [300, 3])
def test_figures_are_those_of_the_package(dataset, tmp_path, most):
    """All nine, with the limit of detections per image; repeated images count once."""
    lvis = pytest.importorskip("lvis")
    from detectron2.evaluation import LVISEvaluator
    from detectron2.evaluation.lvis_evaluation import numpy_float

    name, path, content = dataset
    DatasetCatalog.get(name)
    evaluator = LVISEvaluator(name, output_dir=str(tmp_path / "out"), max_dets_per_image=most)
    evaluator.reset()
    rows = []
    for image_id, instances in detections(content):
        for _ in range(2 if image_id == 1 else 1):
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])
        values = (instances.pred_boxes.tensor, instances.scores, instances.pred_classes)
        for box, score, number in zip(*(value.tolist() for value in values), strict=True):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            rows.append(
                {"image_id": image_id, "category_id": list(CATEGORIES)[number], "bbox": xywh, "score": score}
            )
    found = evaluator.evaluate()["bbox"]
    truth = lvis.LVIS(str(path))
    expected = lvis.LVISEval(truth, lvis.LVISResults(truth, rows, max_dets=most), "bbox")
    expected.params.max_dets = most
    with numpy_float():
        expected.run()
    results = expected.get_results()
    assert list(found) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
    for metric, value in found.items():
        if results[metric] == -1:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(100 * results[metric], abs=1e-3), metric
    assert len({round(found[name], 3) for name in ("APr", "APc", "APf")}) == 3 and 0 < found["AP"] < 100
    assert len(json.loads((tmp_path / "out/lvis_instances_results.json").read_text())) == len(rows)
    assert not hasattr(np, "float") or np.__version__ < "1.24"


def test_perfect_detections_and_none(dataset):
    """Ground truth as detections gives 100; no detections give 0."""
    pytest.importorskip("lvis")
    from detectron2.evaluation import LVISEvaluator

    name, _, _ = dataset
    dicts = DatasetCatalog.get(name)
    evaluator = LVISEvaluator(name)
    evaluator.reset()
    assert evaluator.evaluate()["bbox"]["AP"] == 0
    for x in dicts:
        boxes = torch.tensor([a["bbox"] for a in x["annotations"]])
        boxes[:, 2:] += boxes[:, :2]
        classes = torch.tensor([a["category_id"] for a in x["annotations"]])
        instances = Instances((100, 120), pred_boxes=Boxes(boxes), pred_classes=classes)
        instances.scores = torch.ones(len(boxes))
        evaluator.process([x], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100, abs=1e-3)


def test_a_class_that_the_dataset_does_not_have_is_reported(dataset):
    pytest.importorskip("lvis")
    from detectron2.evaluation import LVISEvaluator

    evaluator = LVISEvaluator(dataset[0])
    instances = Instances((9, 9), pred_boxes=Boxes(torch.ones(1, 4)), scores=torch.ones(1))
    instances.pred_classes = torch.tensor([4])
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    with pytest.raises(ValueError, match="class 4 was predicted, but the dataset has 4 classes"):
        evaluator.evaluate()


def test_repeat_factors_are_the_formula(dataset):
    """max over the classes of an image of max(1, sqrt(t / f(c)))."""
    dicts = DatasetCatalog.get(dataset[0])
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, 0.9)
    for x, factor in zip(dicts, factors.tolist(), strict=True):
        expected = 1.0
        for annotation in x["annotations"]:
            number = annotation["category_id"]
            share = sum(any(a["category_id"] == number for a in y["annotations"]) for y in dicts) / len(dicts)
            expected = max(expected, (0.9 / share) ** 0.5)
        assert factor == pytest.approx(expected)
    assert factors.max() > 1


def test_repeated_sampling():
    """An image comes as often as its factor in the mean; images without objects once; seeds repeat the stream."""
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 2.5, 1.0]), seed=3)
    stream = list(islice(sampler, 4500))
    count = Counter(stream)
    assert count[1] / count[0] == pytest.approx(2.5, abs=0.1) and count[2] / count[0] == pytest.approx(1, abs=0.05)
    assert list(islice(sampler, 100)) == stream[:100]
    empty = [{"annotations": []}, {"annotations": [{"category_id": 0}]}]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(empty, 1.0)
    assert factors.tolist() == pytest.approx([1, 2**0.5])
