"""The benchmark: what it measures is what it says, and the reference it compares with computes the same."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from detrkit.benchmark import data_workers, memory, stopwatch, suite, workloads
from detrkit.commands import benchmark as tool
from detrkit.commands import make_data

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "projects" / "align_detr" / "configs"


CPU = torch.device("cpu")


@pytest.fixture
def no_memory(monkeypatch):
    """Memory is measured in processes of their own, which take seconds to start."""
    monkeypatch.setattr(suite, "peak_bytes", lambda workload, plain, device: 3_000_000 if plain else 1_500_000)


def run(capsys, *arguments):
    tool.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_repeats_are_taken_by_turns_behind_a_warm_up():
    """The first run of each is not in its figures, and a slow minute of the machine hits all of them."""
    calls = []

    def runner(name, fake_seconds):
        def run(watch):
            calls.append(name)
            watch.seconds["a"] = 1.0
            watch.seconds["b"] = fake_seconds.pop(0)

        return run

    timings = stopwatch.by_turns(
        {"ours": runner("ours", [90.0, 1.0, 2.0, 4.0]), "reference": runner("reference", [0.0] * 4)}, CPU, repeats=3
    )
    assert calls == ["ours", "reference"] * 4
    summary = timings["ours"].summary()
    assert 0 <= summary.pop("processor_s") < 1
    assert summary == {"median_s": 3.0, "iqr_s": 1.5, "phases_s": {"a": 1.0, "b": 2.0}}


@pytest.mark.parametrize("config", ["align_detr_tiny.py", "align_dab_detr_tiny.py"])
@pytest.mark.parametrize("kind", ["ia_bce_loss", "align_loss"])
def test_the_plain_formulation_is_the_same_training_step(config, kind):
    """Losses and gradients agree, so that the ratios compare two ways to compute one thing; and it is gone after."""
    cfg = LazyConfig.load(str(CONFIGS / config))
    cfg.train.device = "cpu"
    cfg.model.criterion.loss_class_type = kind
    torch.manual_seed(0)
    model = instantiate(cfg.model).train()
    batch = workloads.synthetic_batch(2, (96, 128), 3, model.num_classes)

    def step():
        torch.manual_seed(1)  # of the denoising queries
        model.zero_grad()
        losses = model(batch)
        sum(losses.values()).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), torch.inf)
        return {name: loss.item() for name, loss in losses.items()} | {"norm": norm.item()}

    ours = step()
    with workloads.reference().plain_formulation(model):
        assert getattr(workloads.attention, workloads.ATTENTION) is workloads.reference().deform_attn
        assert "forward" in vars(model.criterion)
        plain = step()
    assert ours == pytest.approx(plain, rel=1e-3)
    assert getattr(workloads.attention, workloads.ATTENTION) is not workloads.reference().deform_attn
    assert step() == pytest.approx(ours, rel=1e-6)


@pytest.mark.slow
def test_tables_and_figures(capsys, tmp_path, no_memory):
    """Every part's row has its time, memory and ratios; the same are in the JSON file, with all phases."""
    output = run(
        capsys,
        "--config-file",
        CONFIGS / "align_detr_tiny.py",
        "--parts",
        *("criterion", "attention", "step", "inference"),
        *("--batch-sizes", 1, 2, "--image-sizes", "96x96", "--objects", 1, 3, "--repeats", 1, "--reference"),
        *("--json", tmp_path / "figures.json", "train.device=cpu", "model.dn_number=4"),
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["overrides"] == ["train.device=cpu", "model.dn_number=4"] and figures["device"].startswith("cpu")
    records = figures["records"]
    parts = [(r["part"], r["batch"], r["objects"], r.get("layer")) for r in records]
    assert parts == [
        *(("criterion", batch, objects, None) for objects, batch in ((1, 1), (1, 2), (3, 2))),
        *(("attention", batch, 7, layer) for layer in ("encoder", "decoder") for batch in (1, 2)),
        *((part, batch, 7, None) for part in ("step", "inference") for batch in (1, 2)),
    ]
    phases = {r["part"]: set(r["ours"]["phases_s"]) for r in records}
    assert phases["criterion"] == phases["attention"] == {"forward", "backward"}
    assert phases["step"] == {"backbone", "transformer and heads", "criterion", "clipping and optimizer"}
    for record in records:
        for variant in ("ours", "reference"):
            assert sum(record[variant]["phases_s"].values()) == pytest.approx(record[variant]["median_s"])
    assert output.count("time of reference") == 4 and output.count("0.50") >= len(records)  # the memory's ratio
    assert "time per image ×" in output and "from 1 to 3 objects per image" in output
    assert "no GPU here" in output and "96x96, batch 2: backbone" in output


def test_beside_another_option(capsys, monkeypatch, tmp_path, no_memory):
    """--beside times, by turns, what the same command times with that option; the ratio is ours to that."""
    seconds = {"model.num_queries=30": 1.0, "model.num_queries=60": 4.0}

    def prepare(workload: workloads.Inference, plain: bool) -> Callable[[stopwatch.Stopwatch], None]:
        assert not plain
        cfg = workload.config()
        return lambda watch: watch.seconds.update(inference=seconds[f"model.num_queries={cfg.model.num_queries}"])

    monkeypatch.setattr(workloads.Inference, "prepare", prepare)
    output = run(
        capsys,
        *("--config-file", CONFIGS / "align_detr_tiny.py", "--parts", "inference", "--repeats", 1),
        *("--beside", "model.num_queries=60", "--beside", "model.select_box_nums_for_evaluation=5"),
        *("--json", tmp_path / "figures.json", "train.device=cpu", "model.num_queries=30"),
    )
    (record,) = json.loads((tmp_path / "figures.json").read_text())["records"]
    assert record["ours"]["median_s"] == 1 and record["beside"]["median_s"] == 4 and "reference" not in record
    assert "time of beside" in output and output.count("0.25") == 1


@pytest.mark.slow
def test_growth_is_of_one_thing_at_a_time(capsys, tmp_path, no_memory):
    """Each row differs from the smallest of its kind in what it says, and its products are those of such a step."""
    output = run(
        capsys,
        *("--config-file", CONFIGS / "align_h_deformable_detr_tiny.py", "--parts", "growth", "--repeats", 1),
        *("--image-sizes", "64x64", "64x128", "--batch-sizes", 1, 2, "--objects", 2, 4),
        *("--json", tmp_path / "figures.json", "train.device=cpu"),
        *("model.num_queries_one2one=16", "model.num_queries_one2many=32"),
    )
    records = json.loads((tmp_path / "figures.json").read_text())["records"]
    rows = {(r["cause"], r["value"]): (r["image_size"], r["batch"], r["objects"]) for r in records}
    assert rows == {
        ("image size", "64x64"): ("64x64", 1, 2),
        ("image size", "64x128"): ("64x128", 1, 2),
        ("batch", 1): ("64x64", 1, 2),
        ("batch", 2): ("64x64", 2, 2),
        ("objects", 2): ("64x64", 1, 2),
        ("objects", 4): ("64x64", 1, 4),
        **{("queries", number): ("64x64", 1, 2) for number in (12, 24, 48)},
    }
    products = {(r["cause"], r["value"]): r["products"] for r in records}
    assert products["batch", 2] == pytest.approx(2 * products["batch", 1], rel=0.01)
    assert products["image size", "64x128"] > 1.3 * products["image size", "64x64"]
    assert products["objects", 2] == products["batch", 1] == products["queries", 48] > products["queries", 12]
    line = next(line.split() for line in output.splitlines() if line.startswith("batch") and line.split()[1] == "2")
    assert line[-1] == "2.00" and line[-2] == "1.00"  # memory is faked


@pytest.mark.parametrize("config", ["align_h_deformable_detr_tiny.py", "align_dab_detr_tiny.py"])
def test_other_detectors(config, capsys, no_memory):
    """Criteria that are called in another way, and a detector without deformable attention."""
    output = run(
        capsys,
        *("--config-file", CONFIGS / config, "--parts", "criterion", "attention", "step"),
        *("--batch-sizes", 1, "--image-sizes", "96x96", "--objects", 2, "--repeats", 1, "train.device=cpu"),
    )
    assert ("no deformable attention" in output) == ("dab" in config)
    assert output.count("1.5 MB") + output.count("2 MB") >= 2 and "criterion" in output.splitlines()[-1]


def test_memory_is_that_of_a_run(tmp_path):
    """The criterion needs more than a copy of its predictions for 16 images, and far less than a model and PyTorch."""
    if not memory.Memory(CPU).known:
        pytest.skip("the memory of a process is not known here")
    outputs = {"pred_logits": torch.zeros(1, 400, 80), "pred_boxes": torch.zeros(1, 400, 4)}
    targets = [{"labels": torch.zeros(1), "boxes": torch.zeros(1, 4)}]
    workload = workloads.Criterion(
        str(CONFIGS / "align_dab_detr_r50_50ep.py"), ["train.device=cpu"], 16, (96, 96), 5, [((outputs, targets), {})]
    )
    size = 4 * 16 * 400 * 84
    assert size < memory.peak_bytes(workload, False, CPU) < 20 * size


def test_traffic_of_the_attention():
    """Bytes by hand: 2 images of 10 cells, 3 queries, 2 heads of 8 channels, 1 level, 4 points, in bfloat16."""
    value = torch.zeros(1, 10, 2, 8, dtype=torch.bfloat16)
    locations, weights = torch.zeros(1, 3, 2, 1, 4, 2), torch.zeros(1, 3, 2, 1, 4, dtype=torch.bfloat16)
    workload = workloads.Attention("", [], 2, (1, 1), 1, (value, None, locations, weights))
    values, places, shares, output = 2 * 160 * 2, 2 * 48 * 4, 2 * 24 * 2, 2 * 48 * 2
    gathered = 2 * 24 * 4 * 8  # values read in all
    assert workload.traffic() == {
        "forward": (values + places + shares + output, 2 * gathered),
        "backward": (4 * values + 2 * (places + shares) + output, 2 * gathered + 8 * gathered),
    }


def test_data(capsys, tmp_path):
    """The loader's own rate, whatever it loads."""
    output = run(
        capsys,
        *("--config-file", Path(__file__).with_name("toy_config.py"), "--parts", "data", "--repeats", 2),
        *("--json", tmp_path / "figures.json"),
    )
    (record,) = json.loads((tmp_path / "figures.json").read_text())["records"]
    assert record["batch"] == 4 and record["images_per_s"] > 0 and "images/s in batches of 4" in output


def test_data_beside_decoding(capsys, monkeypatch, tmp_path):
    """How much of the time goes into what training does to an image once it is read."""
    make_data.main(["--synthetic", "--train", "8", "--val", "1", "--output", str(tmp_path)])
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path))
    options = ("--parts", "data", "--repeats", 1, "train.device=cpu", "dataloader.train.num_workers=0")
    output = run(capsys, "--config-file", CONFIGS / "align_detr_tiny.py", *options)
    rate, share = re.search(r"(\S+) images/s in one process, (\S+) of decoding alone", output).groups()
    assert float(rate) > 0 and float(share) > 0


def test_data_that_is_not_there(capsys, monkeypatch):
    """Among other parts it is left out, with the reason; asked for alone, it is an error."""
    monkeypatch.setenv("TINY_COCO_ROOT", "/nowhere")
    options = ("--config-file", CONFIGS / "align_detr_tiny.py", "train.device=cpu")
    with pytest.raises(SystemExit):
        run(capsys, "--parts", "data", *options)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "/nowhere" in error and error.count("\n") == 1


needs_shared_memory = pytest.mark.skipif(
    not data_workers.is_measurable(), reason="the system does not report proportional set sizes"
)


@needs_shared_memory
def test_workers(capsys, monkeypatch, tmp_path):
    """A line for each number of workers, compared with the fewest; the annotations are as many as it says."""
    for name, value in {"IMAGES": 60, "BOXES": 200, "COUNTS": (2,), "METHODS": ("fork",)}.items():
        monkeypatch.setattr(data_workers, name, value)
    path = tmp_path / "figures.json"
    options = ("--parts", "workers", "--json", path, "train.device=cpu")
    output = run(capsys, "--config-file", CONFIGS / "align_detr_tiny.py", *options)
    assert "60 images with 200 boxes" in output and re.search(r"fork +2 +\d+\.\d\d s +\d+ MB +1\.00", output)
    (record,) = json.loads(path.read_text())["records"]
    assert record["workers"] == 2 and 0 < record["start_s"] and 50e6 < record["bytes"] < 2e9


def test_annotations_are_as_many_as_asked_for():
    """As detectron2's loader returns them, and the same in each call."""
    images = data_workers.annotated_images(50, 400)
    assert len(images) == 50 and sum(len(image["annotations"]) for image in images) == 400
    assert {"file_name", "height", "width", "image_id", "annotations"} == set(images[0])
    assert images == data_workers.annotated_images(50, 400)


@needs_shared_memory
@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_share_annotations_and_libraries(method, monkeypatch):
    """A further worker takes less than the annotations, some 30 MB here, and far less than PyTorch's 160 MB."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "projects")]))
    few, many = (data_workers.measure_workers(method, workers, 50_000, 350_000)["bytes"] for workers in (1, 5))
    assert (many - few) / 4 < 24e6


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--parts", "step", "steps"], "there is no steps; choose from criterion, attention"),
        (["--image-sizes", "480"], "--image-sizes: 480 is no image size, such as 480x640"),
        (["--batch-sizes", "0"], "--batch-sizes: 0 is not a number from 1 up"),
        (["--beside", "train.amp.enable=False"], "the config has no train.amp.enable: did you mean"),
        (["--parts", "growth", "--beside", "train.amp.enabled=False"], "--parts growth has no --beside"),
    ],
)
def test_options_that_make_no_sense(options, reason, capsys):
    """One line that says which and why."""
    with pytest.raises(SystemExit):
        run(capsys, "--config-file", CONFIGS / "align_detr_tiny.py", *options)
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


def test_augmentation(capsys, tmp_path, monkeypatch):
    """Each augmentation takes longer than none, on the same images, and the tables have what the file has."""
    make_data.main(["--synthetic", "--train", "3", "--val", "1", "--output", str(tmp_path)])
    monkeypatch.setenv("TINY_COCO_ROOT", str(tmp_path))
    options = ("--repeats", 1, "train.device=cpu", "--json", tmp_path / "times.json")
    text = run(capsys, "align_detr_tiny", "--parts", "augmentation", *options)
    records = json.loads((tmp_path / "times.json").read_text())["records"]
    times = {record["augmentation"]: record for record in records}
    assert {"none", "decoding alone", "ColorJitter", "mosaic", "copy-paste", "the config's own"} <= times.keys()
    assert all(record["part"] == "augmentation" and record["images"] >= 2 for record in records)
    assert times["none"]["added_s"] == 0 and times["decoding alone"]["added_s"] < 0
    for name in ("LargeScaleJitter, 1024", "ColorJitter", "mosaic"):
        assert times[name]["added_s"] > 0 and re.search(rf"{name} +{1e3 * times[name]['image_s']:.1f} ", text)
    assert times["LargeScaleJitter, 1024"]["image_s"] > times["LargeScaleJitter, 640"]["image_s"]


def test_augmentation_of_another_mapper(capsys):
    with pytest.raises(SystemExit):
        run(capsys, "--parts", "augmentation", "--config-file", Path(__file__).with_name("toy_config.py"))
    assert "dataloader.train.mapper has no augmentation to replace" in capsys.readouterr().err
