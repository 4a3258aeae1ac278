"""Classes are matched by name, whatever their ids; and what an evaluation needs is there before the first iteration."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import oracle
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from detrkit.datasets.results import with_ids_of_copy
from detrkit.reports.sheet import read_results
from detrkit.training.class_heads import class_rows
from detrkit.training.evaluation import Evaluations

CONFIG = str(Path(__file__).with_name("oracle_config.py"))
TOOL = str(Path(__file__).resolve().parents[3] / "tools" / "train_net.py")
LOGGERS = ("detectron2", "detrex", "align_detr", "detrkit", "projects", "fvcore")
TRAIN = {1: "cat", 2: "dog", 3: "eel"}
OTHER_ORDER = {1: "dog", 2: "eel", 7: "cat"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The drawings, with annotations in one order of classes."""
    root = tmp_path / "data"
    oracle.draw(root)
    oracle.annotate(root, "train.json", TRAIN)
    oracle.annotate(root, "val.json", TRAIN)
    monkeypatch.setenv("ORACLE", str(root))
    yield root
    for name in ("oracle_train", "oracle_val"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture
def run(root, tmp_path, monkeypatch):
    """`run("--eval-only", "a.b=1")` runs `align-detr train` with the oracle and tmp_path/out for output."""
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    from detrkit.commands import train

    def run(*arguments, folder="out", config=CONFIG):
        options = [argument for argument in arguments if argument.startswith("--")]
        overrides = [f"train.output_dir={tmp_path / folder}", *(a for a in arguments if not a.startswith("--"))]
        train.train_net(["--config-file", str(config), *options, *overrides])
        return tmp_path / folder

    return run


@pytest.fixture
def fails(run, capsys):
    """As `run`, which has to stop with one line of error; returns that line."""

    def fails(*arguments, **kwargs):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run(*arguments, **kwargs)
        assert stop.value.code == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")

    return fails


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def last_ap(folder):
    return metrics(folder)[-1]["bbox/AP"]


def results(folder):
    return json.loads((folder / "coco_instances_results.json").read_text())


def printed_ap(capfd):
    lines = [line for line in capfd.readouterr().out.splitlines() if "copypaste: " in line]
    return float(lines[-1].partition("copypaste: ")[2].partition(",")[0])


def classes_in(folder):
    content = torch.load(folder / "model_final.pth", weights_only=True)
    return content["trainer"]["hooks"]["RunState"]["facts"]["classes"]


# --- train and val ---------------------------------------------------------------------------------------------------


def test_val_in_another_order_than_train(root, run):
    """Perfect detections reach AP 100, and the file of detections has the ids of the user's val.json."""
    content = oracle.annotate(root, "val.json", OTHER_ORDER)
    folder = run()
    assert last_ap(folder) == pytest.approx(100)
    expected = {(a["image_id"], a["category_id"], *map(float, a["bbox"])) for a in content["annotations"]}
    assert {(d["image_id"], d["category_id"], *d["bbox"]) for d in results(folder)} == expected
    assert classes_in(folder) == [[1, "cat"], [2, "dog"], [3, "eel"]]


def test_val_without_one_of_the_classes(root, run):
    """The others reach AP 100; detections of the class that val.json does not have are not in the file of them."""
    oracle.annotate(root, "val.json", {4: "eel", 5: "cat"})
    folder = run()
    assert last_ap(folder) == pytest.approx(100)
    assert {d["category_id"] for d in results(folder)} == {4, 5}


def test_classes_that_differ_in_white_space_are_one(root, run):
    oracle.annotate(root, "val.json", {1: "cat", 2: "dog", 3: "eel"})
    file = root / "val.json"
    file.write_text(file.read_text().replace('"dog"', '" dog "'))
    assert last_ap(run()) == pytest.approx(100)


def test_a_class_that_train_does_not_have(root, fails, tmp_path):
    """Is an error before the first iteration that names it, unless nothing is annotated with it."""
    oracle.annotate(root, "train.json", {1: "cat", 2: "dog"})
    line = fails("model.num_classes=2")
    assert "val.json" in line and "objects of the class eel" in line and "cat, dog (those of oracle_train)" in line
    assert not list((tmp_path / "out").glob("*.pth")) and not (tmp_path / "out/metrics.json").exists()


def test_a_class_without_objects_needs_no_match(root, run):
    """Annotation tools list classes that they do not use, such as a group of all."""
    file = root / "val.json"
    content = json.loads(file.read_text())
    content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    file.write_text(json.dumps(content))
    assert last_ap(run()) == pytest.approx(100)


@pytest.mark.parametrize("count, said", [(2, "set model.num_classes=3"), (5, "set model.num_classes=3")])
def test_another_number_of_outputs_than_classes(fails, count, said):
    """Each would fail at the first evaluation, or before it on some image."""
    line = fails(f"model.num_classes={count}")
    assert f"model.num_classes={count}, but oracle_" in line and said in line


def test_one_class_is_not_classes(root, fails):
    for name in ("train.json", "val.json"):
        oracle.annotate(root, name, {1: "cat"})
    assert "has 1 class (cat): set model.num_classes=1" in fails("model.num_classes=7")


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_evaluation_by_the_names_in_a_checkpoint(root, run, capfd):
    """Data in any order; also where the training data are not here any more, or have another order by now."""
    weights = run() / "model_final.pth"
    oracle.annotate(root, "val.json", OTHER_ORDER)
    oracle.annotate(root, "train.json", OTHER_ORDER)
    capfd.readouterr()
    folder = run("--eval-only", f"train.init_checkpoint={weights}", folder="eval")
    assert printed_ap(capfd) == pytest.approx(100)
    assert {d["category_id"] for d in results(folder)} == {1, 2, 7}
    (root / "train.json").unlink()
    run("--eval-only", f"train.init_checkpoint={weights}", folder="eval")
    assert printed_ap(capfd) == pytest.approx(100)


def test_evaluation_of_weights_without_names(root, run, capfd, tmp_path):
    """They are in the order of the training data."""
    weights = torch.load(run() / "model_final.pth", weights_only=True)["model"]
    torch.save({"model": weights}, tmp_path / "weights.pth")
    oracle.annotate(root, "val.json", OTHER_ORDER)
    capfd.readouterr()
    run("--eval-only", f"train.init_checkpoint={tmp_path / 'weights.pth'}", folder="eval")
    assert printed_ap(capfd) == pytest.approx(100)


def test_evaluation_on_classes_that_a_checkpoint_does_not_know(root, run, fails):
    weights = run() / "model_final.pth"
    file = root / "val.json"
    file.write_text(file.read_text().replace('"eel"', '"fox"'))
    line = fails("--eval-only", f"train.init_checkpoint={weights}", folder="eval")
    assert "objects of the class fox" in line and f"(those of {weights})" in line


def test_resuming_keeps_the_order_of_the_outputs(root, run, tmp_path):
    """Also after train.json has been written anew with other ids."""
    run("train.max_iter=2")
    oracle.annotate(root, "train.json", OTHER_ORDER)
    oracle.annotate(root, "val.json", {3: "eel", 9: "cat", 11: "dog"})
    folder = run("--resume", "train.max_iter=4")
    assert last_ap(folder) == pytest.approx(100) and metrics(folder)[-1]["iteration"] == 4
    assert [name for _, name in classes_in(folder)] == ["cat", "dog", "eel"]


def heads(path):
    state = torch.load(path, weights_only=True)["model"]
    return state["class_embed.weight"], state["label_enc.weight"]


def frozen(*arguments):
    """A training in which weights stay as they were loaded."""
    return ["optimizer.lr=0", "train.max_iter=1", *arguments]


def test_fine_tuning_on_the_same_classes_in_another_order(root, run):
    """The outputs keep the order of the checkpoint, whose weights mean these classes, and the data follow."""
    weights = run() / "model_final.pth"
    oracle.annotate(root, "train.json", OTHER_ORDER)
    oracle.annotate(root, "val.json", OTHER_ORDER)
    folder = run(*frozen(f"train.init_checkpoint={weights}"), folder="tuned")
    assert last_ap(folder) == pytest.approx(100)
    assert classes_in(folder) == [[1, "cat"], [2, "dog"], [3, "eel"]]
    for before, after in zip(heads(weights), heads(folder / "model_final.pth"), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("names", ["fox eel cat", "eel cat", "eel fox cat bee"])
def test_fine_tuning_on_other_classes(root, run, names, monkeypatch, capfd):
    """A class that the checkpoint knows starts from its weights, wherever it stands; the others start anew."""
    new = dict(enumerate(names.split()))
    weights = run("train.init_checkpoint=") / "model_final.pth"
    file = root / "truth.json"
    file.write_text(file.read_text().replace('"dog"', '"fox"' if "fox" in new.values() else '"eel"'))
    for name in ("train.json", "val.json"):
        oracle.annotate(root, name, new)
    monkeypatch.setenv("ORACLE_NAMES", ",".join(new.values()))
    capfd.readouterr()
    folder = run(*frozen(f"train.init_checkpoint={weights}", f"model.num_classes={len(new)}"), folder="tuned")
    log = capfd.readouterr().out
    assert last_ap(folder) == pytest.approx(100)
    (old_head, old_labels), (head, labels) = heads(weights), heads(folder / "model_final.pth")
    for row, name in enumerate(new.values()):
        if name in TRAIN.values():
            old = list(TRAIN.values()).index(name)
            assert torch.equal(head[row], old_head[old]) and torch.equal(labels[row], old_labels[old])
        else:
            assert not any(torch.equal(head[row], other) for other in old_head)
            assert name in log.partition("initial weights for ")[2].splitlines()[0]
    assert torch.equal(labels[-1], old_labels[-1]) and len(head) == len(labels) - 1 == len(new)


def test_rows_of_classes_are_found_by_building_a_larger_model(root):
    """In any detector, without a list of names; and the training goes on with the same random numbers."""
    from detrkit.config.load import load_config

    cfg = load_config(CONFIG, [])
    state = torch.get_rng_state()
    rows = class_rows(cfg, oracle.Oracle())
    assert {name: tuple(row) for name, row in rows.items()} == {
        "class_embed.weight": (1, 0),
        "class_embed.bias": (1, 0),
        "label_enc.weight": (1, 1),
    }
    torch.set_rng_state(state)
    class_rows(cfg, oracle.Oracle())


# --- results and images ----------------------------------------------------------------------------------------------


def test_detections_have_the_users_image_ids(root, run, tmp_path):
    """Texts as they were given, and `visualize-results` knows what they stand for."""
    from detrkit.commands import visualize_results

    oracle.annotate(root, "val.json", OTHER_ORDER, image_id=lambda number: f"frame_{number:05d}")
    folder = run()
    assert last_ap(folder) == pytest.approx(100)
    found = results(folder)
    assert {d["image_id"] for d in found} == {f"frame_{number:05d}" for number in range(4)}
    arguments = ["--input", f"{folder}/coco_instances_results.json", "--output", f"{tmp_path}/sheet.png"]
    visualize_results.main([*arguments, "--config-file", CONFIG, "--dataset", "oracle_val"])
    assert (tmp_path / "sheet.png").is_file()
    detections = with_ids_of_copy(
        read_results(folder / "coco_instances_results.json"), MetadataCatalog.get("oracle_val").json_file
    )
    images = {image["image_id"]: image for image in DatasetCatalog.get("oracle_val")}
    assert detections.keys() == images.keys()
    to_class = MetadataCatalog.get("oracle_val").thing_dataset_id_to_contiguous_id
    for image_id, image in images.items():
        truth = {(a["category_id"], *a["bbox"]) for a in image["annotations"]}
        assert {(to_class[d["category_id"]], *d["bbox"]) for d in detections[image_id]} == truth


@pytest.mark.parametrize("labelled", ["no list", "empty list"])
def test_test_images_without_annotations(root, run, capfd, labelled):
    """`eval` writes the detections, and says that there are no figures."""
    weights = run() / "model_final.pth"
    content = json.loads((root / "val.json").read_text())
    content["annotations"] = []
    if labelled == "no list":
        del content["annotations"]
    (root / "val.json").write_text(json.dumps(content))
    capfd.readouterr()
    folder = run("--eval-only", f"train.init_checkpoint={weights}", folder="eval")
    said = capfd.readouterr().out
    assert f"no figures; the detections are in {folder}/coco_instances_results.json" in said
    assert len(results(folder)) == 12


def cut(path):
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize(
    "harm, said",
    [
        (lambda root: (root / "2.png").unlink(), "2.png is not there"),
        (lambda root: (root / "2.png").write_text("?"), "2.png is not an image"),
        (lambda root: oracle.Image.new("RGB", (8, 9)).save(root / "2.png"), "2.png is 8x9 pixels, its annotation says"),
    ],
)
def test_images_are_looked_at_before_the_first_iteration(root, fails, tmp_path, harm, said):
    harm(root)
    line = fails()
    assert line.startswith("1 of 4 images of oracle_val cannot be used for evaluation: ") and said in line
    assert not (tmp_path / "out/metrics.json").exists()


def test_a_failed_evaluation_does_not_end_the_training(root, fails, tmp_path):
    """What no header tells: an image that is cut off. The training is complete, with its checkpoints; the exit status
    and one line say that figures are missing, and no earlier ones stand in their place."""
    validation = json.loads((root / "val.json").read_text())
    for number in (0, 1):
        (root / f"{number}.png").rename(root / f"v{number}.png")
    truth = json.loads((root / "truth.json").read_text())
    for number in (0, 1):
        validation["images"][number]["file_name"] = f"v{number}.png"
        truth[f"v{number}.png"] = truth[f"{number}.png"]
    oracle.Image.new("RGB", (oracle.SIDE, oracle.SIDE)).save(root / "0.png")
    oracle.Image.new("RGB", (oracle.SIDE, oracle.SIDE)).save(root / "1.png")
    (root / "val.json").write_text(json.dumps(validation))
    (root / "truth.json").write_text(json.dumps(truth))
    cut(root / "v1.png")
    line = fails()
    assert line.startswith("2 evaluations failed: ") and "v1.png" in line
    assert "the training is complete" in line and str(tmp_path / "out") in line
    out = tmp_path / "out"
    assert [row["iteration"] for row in metrics(out) if "total_loss" in row] == [0, 1, 2, 3]
    assert not any("bbox/AP" in row for row in metrics(out))
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 3
    assert (out / "last_checkpoint").read_text() == "model_final.pth"


def test_weights_survive_a_failed_evaluation_of_averages(root, run, tmp_path, monkeypatch):
    """detrex puts the trained weights back only if nothing was raised: a training would go on with the averages."""
    calls = []
    detect = oracle.Oracle.detect

    def breaks(self, image):
        calls.append(self.class_embed.weight.detach().clone())
        if len(calls) == 5:  # the first image by the averages
            raise RuntimeError("out of luck")
        return detect(self, image)

    averaged = ["train.model_ema.enabled=True", "train.model_ema.decay=0.9", "train.max_iter=3"]
    run(*averaged, folder="whole")
    monkeypatch.setattr(oracle.Oracle, "detect", breaks)
    with pytest.raises(SystemExit):
        run(*averaged, folder="broken")
    whole, broken = (torch.load(tmp_path / f / "model_final.pth", weights_only=True) for f in ("whole", "broken"))
    assert torch.equal(whole["model"]["class_embed.weight"], broken["model"]["class_embed.weight"])
    assert not torch.equal(calls[0], calls[4])


def test_a_later_evaluation_that_fails_leaves_no_stale_figures():
    """The results of the last evaluation are those of the last weights, or none."""
    answers = [{"bbox": {"AP": 1.0}}, ValueError("no\nluck"), {"bbox": {"AP": 2.0}}]

    def evaluate():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    evaluations = Evaluations(evaluate)
    assert evaluations() == evaluations.results == {"bbox": {"AP": 1.0}}
    assert evaluations() == evaluations.results == {} and evaluations.failures == ["no luck"]
    assert evaluations()["bbox"]["AP"] == 2
    with pytest.raises(ValueError, match="^an evaluation failed: no luck; the training is complete, see out$"):
        evaluations.raise_failures("out")


@pytest.mark.slow
def test_a_failed_evaluation_in_one_of_two_processes(root, tmp_path):
    """The others do not wait for it: the training goes on, and all end with the same status."""
    oracle.annotate(root, "val.json", TRAIN)
    content = json.loads((root / "val.json").read_text())
    content["images"][3]["file_name"] = "v3.png"
    (root / "v3.png").write_bytes((root / "3.png").read_bytes())
    cut(root / "v3.png")
    (root / "val.json").write_text(json.dumps(content))
    command = [sys.executable, TOOL, "--config-file", CONFIG, "--num-gpus", "2", f"train.output_dir={tmp_path / 'out'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ORACLE": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 1, done.stderr
    assert "2 evaluations failed: " in done.stderr and "v3.png" in done.stderr and "Traceback" not in done.stderr
    assert torch.load(tmp_path / "out/model_final.pth", weights_only=True)["iteration"] == 3
