"""The comparison of detectors: what it trains and measures, and how it says what is missing."""

import json
import signal
import sys

import pytest
from PIL import Image

from detrkit.config.changes import flat_config
from detrkit.config.load import load_config

# In place of the tools. AP is the seed, plus 10 with our criterion; alignment.json says which checkpoint it is of.
TOOL = """
import json, re, sys
from pathlib import Path

words = sys.argv[1:]
given = dict(word.split("=", 1) for word in words if re.match(r"[\\w.]+=", word))
folder = Path(given["train.output_dir"].strip("'"))
(folder / "calls.txt").open("a").write(" ".join(sys.argv[0:1] + words) + "\\n")
ours = "align" in words[words.index("--config-file") + 1]
if "--checkpoint" in words:
    out = Path(words[words.index("--output") + 1])
    out.mkdir()
    report = {"models": [{"figures": {"same_query": 0.9 if ours else 0.8}}]}
    (out / "alignment.json").write_text(json.dumps(report))
elif given["train.seed"] == "9":
    sys.exit("error: no luck")
else:
    ap = int(given["train.seed"]) + 10 * ours
    row = {"iteration": 40, "bbox/AP": ap, "alignment/boxes_per_object": 1.1}
    (folder / "metrics.json").write_text(json.dumps(row) + "\\n")
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """`run("--seeds", 1)` runs the tool and returns its exit status; output goes to tmp_path / "out"."""
    from detrkit.commands import compare
    from detrkit.experiments import runner

    handler = signal.getsignal(signal.SIGTERM)
    for name in ("TRAIN", "ANALYZE"):
        script = tmp_path / f"{name}.py"
        script.write_text(TOOL)
        monkeypatch.setattr(runner, name, [sys.executable, str(script)])

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            compare.main(["--output", str(tmp_path / "out"), *map(str, arguments)])
        return stop.value.code

    yield run
    signal.signal(signal.SIGTERM, handler)


def test_every_config_is_trained_analysed_and_compared_with_its_own_baseline(run, tmp_path, capsys):
    """Each detector's gain is over its own supervision, and a second call trains nothing again."""
    for _ in range(2):
        assert run("--seeds", 1, 2) == 0
    assert "8 of 8 runs are finished already" in capsys.readouterr().out
    out = tmp_path / "out"
    report = json.loads((out / "results.json").read_text())
    assert len(report["families"]) == 2
    for family in report["families"]:
        baseline, ours = family["settings"]
        assert baseline["difference"] is None and ours["name"].startswith("align")
        assert ours["difference"]["mean"] == 10 and not ours["difference"]["within_noise"]
        assert ours["metrics"]["layers/same_query"]["mean"] == pytest.approx(0.9)
        assert ours["metrics"]["alignment/boxes_per_object"]["mean"] == pytest.approx(1.1)
    train, analysis = (out / "align_h_deformable_detr_tiny/seed_2/calls.txt").read_text().splitlines()
    assert "--resume" in train and "train.seed=2" in train
    assert "seed_2/model_final.pth" in analysis
    assert (out / "comparison.png").stat().st_size > 10_000
    assert "11.50 ± 0.71" in (out / "table.md").read_text()


def test_several_configs_with_one_baseline_are_one_family(run, tmp_path):
    """The baseline is trained and shown once, and what seeds do to one is counted for all."""
    assert run("--seeds", 1, 2, "--pairs", "align_detr_tiny:dino_tiny", "align_dab_detr_tiny:dino_tiny") == 0
    (family,) = json.loads((tmp_path / "out/results.json").read_text())["families"]
    assert [row["name"] for row in family["settings"]] == ["dino_tiny", "align_detr_tiny", "align_dab_detr_tiny"]
    assert family["degrees_of_freedom"] == 3
    assert (tmp_path / "out/table.md").read_text().count("dino_tiny,") == 1


def test_a_table_with_runs_missing_says_so(run, tmp_path, capsys):
    """A failed run is named, and the table does not pass for complete."""
    assert run("--seeds", 1, 9, "--jobs", 1) == 1
    assert "dino_tiny, seed 9: failed: no luck" in capsys.readouterr().err
    assert "4 of 8 runs are still to come, or failed" in (tmp_path / "out/table.md").read_text()


@pytest.mark.parametrize(
    "pair, said", [("a.py", "CONFIG:BASELINE"), ("a.py:b/a.py", "two configs of one name"), ("a.py:b.py", "a.py")]
)
def test_mistakes_are_told_in_one_line(run, capsys, pair, said):
    assert run("--pairs", pair, "--dry-run") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


@pytest.fixture
def photographs(tmp_path):
    """A folder of two photographs to train on and one to validate on."""
    folder = tmp_path / "mine"
    for split, count in (("train", 2), ("val", 1)):
        (folder / split).mkdir(parents=True)
        images = [{"id": i + 1, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(count)]
        boxes = [
            {"id": i + 1, "image_id": i + 1, "category_id": 1, "bbox": [3, 4, 20, 10], "area": 200, "iscrowd": 0}
            for i in range(count)
        ]
        for image in images:
            Image.new("RGB", (40, 30)).save(folder / split / image["file_name"])
        content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "nut"}]}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


TINY = "align_detr_tiny:dino_tiny"


def test_a_folder_of_photographs_is_compared_on(run, tmp_path, photographs, capsys):
    """Both sides train on the same files, for the same number of iterations; a second call trains nothing again."""
    for _ in range(2):
        assert run("--data", photographs, "--pairs", TINY, "--seeds", 1, "--epochs", 6) == 0
    said = capsys.readouterr().out
    assert "nut" in said and "2 of 2 runs are finished already" in said
    out = tmp_path / "out"
    ours, baseline = (load_config(str(out / f"{name}.py"), []) for name in ("align_detr_tiny", "dino_tiny"))
    for cfg in (ours, baseline):
        assert cfg.model.num_classes == 1 and cfg.train.max_iter == 3
        assert (cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names) == ("mine_train", "mine_val")
    assert ours.model.criterion._target_ != baseline.model.criterion._target_
    (call, _) = (out / "dino_tiny/seed_1/calls.txt").read_text().splitlines()
    assert str(out / "dino_tiny.py") in call
    (family,) = json.loads((out / "results.json").read_text())["families"]
    assert [row["name"] for row in family["settings"]] == ["dino_tiny", "align_detr_tiny"]


def test_iterations_of_the_command_line_set_the_evaluations_of_a_folder(run, tmp_path, photographs):
    assert run("--data", photographs, "--pairs", TINY, "--seeds", 1, "--max-iter", 40) == 0
    assert load_config(str(tmp_path / "out/dino_tiny.py"), []).train.eval_period == 4


def test_a_dry_run_on_a_folder_writes_nothing(run, tmp_path, photographs, capsys):
    assert run("--data", photographs, "--pairs", TINY, "--seeds", 1, "--dry-run") == 0
    assert "to do     align_detr_tiny, seed 1" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_other_photographs_are_not_mixed_with_those_of_before(run, tmp_path, photographs, capsys):
    """Runs that are finished would count as results on the new ones."""
    assert run("--data", photographs, "--pairs", TINY, "--seeds", 1) == 0
    (photographs / "train/1.png").unlink()
    before = (tmp_path / "out/data/train.json").read_bytes()
    assert run("--data", photographs, "--pairs", TINY, "--seeds", 1) == 1
    assert "is of other data or settings: name another --output" in capsys.readouterr().err
    assert (tmp_path / "out/data/train.json").read_bytes() == before


@pytest.mark.parametrize(
    "words, said",
    [
        (["--epochs", "3"], "--epochs is for a folder of images: give it by --data"),
        (["--epochs", "0"], "--epochs is for a folder of images: give it by --data"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "mine", "--epochs", "0"], "--epochs 0: at least 1"),
        (["--data", "mine", "--pairs", TINY, "model.num_classes=0"], "num_classes"),
    ],
)
def test_mistakes_about_a_folder_are_told_in_one_line(run, photographs, monkeypatch, capsys, words, said):
    monkeypatch.chdir(photographs.parent)
    assert run(*words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_detector_of_a_folder_is_compared_with_its_own_baseline(monkeypatch, photographs, tmp_path, device):
    """Nothing but the supervision differs."""
    from detrkit.experiments.comparison import Folder, write_pairs
    from detrkit.experiments.experiment import Options
    from detrkit.training import folder

    monkeypatch.setattr(folder, "best_device", lambda: device)
    monkeypatch.setattr(folder, "_problem_of_cpu_packages", lambda: "")
    ((ours, baseline),) = write_pairs(Folder(photographs), [], Options(tmp_path / "out", [1]), tmp_path / "out")
    first, second = (flat_config(load_config(str(path), [])) for path in (ours, baseline))
    different = {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
    assert different and all(key.startswith("model.criterion.") for key in different)
