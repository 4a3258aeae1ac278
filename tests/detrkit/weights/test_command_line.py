"""Weights of every format through the commands: train from them, evaluate, export, and write them back."""

import json
import logging
import shutil

import pytest
import torch
from small_models import CONFIGS, LACKING, SHAPE, accepting, config_name, random_file

from detrkit.commands import export, export_weights, make_data, train, weights
from detrkit.config.load import get_config
from detrkit.weights import all_formats, look_at, read

LOGGERS = ("detectron2", "detrex", "align_detr", "detrkit", "projects", "fvcore")
FORMATS = [known for known in all_formats().values() if not known.refusal]
NAMES = [known.name for known in FORMATS]
QUICK = {"mmdet_dino", "hf_conditional_detr"}  # one of each kind of detector; the others take minutes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight images to train on and two to evaluate on."""
    folder = tmp_path_factory.mktemp("data")
    make_data.main(["--synthetic", "--train", "8", "--val", "2", "--output", str(folder)])
    return folder


@pytest.fixture
def command(data, monkeypatch, tmp_path):
    """`command("mmdet_dino", "--eval-only", "a.b=1")` runs `align-detr train` with the format's tiny config."""
    monkeypatch.setenv("TINY_COCO_ROOT", str(data))

    def run(name, *words, output="output"):
        for logger in LOGGERS:
            monkeypatch.setattr(logging.getLogger(logger), "handlers", [])
        options = [word for word in words if word.startswith("--")]
        overrides = [word for word in words if not word.startswith("--")]
        small = ["train.max_iter=1", "train.device=cpu", "dataloader.train.num_workers=0", "train.report.enabled=False"]
        small += ["dataloader.train.total_batch_size=2", "dataloader.test.num_workers=0"]
        small += [f"train.output_dir={tmp_path / output}", *SHAPE.get(name, [])]
        small += [] if any("ignore_checkpoint_settings" in word for word in overrides) else accepting()
        config = config_name(name)
        train.main(["--config-file", config, *options, *small, *overrides])
        return tmp_path / output / "model_final.pth"

    return run


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def without_counters(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_a_file_of_a_format_trains_evaluates_exports_and_comes_back(command, tmp_path, name, caplog, capsys):
    """One file, through everything that weights are for. What comes back is what was trained, to the bit."""
    source = tmp_path / "theirs.pth"
    given = random_file(name, source)
    recognised = look_at(source)
    assert recognised.format.name == name
    trained = command(name, f"train.init_checkpoint={source}")
    out = capsys.readouterr().out
    assert f"{recognised.source}: " in out and "renamed" in out
    state = read(trained).state
    weights_there = {key for key in given if key in state and not key.endswith(STATISTICS)}
    moved = [(given[key] - state[key]).abs().max() for key in weights_there]
    assert 0 < max(moved) < 1e-2  # one step from the file's weights, not from random ones

    kept = look_at(trained)  # in a later run too, the settings are those of the weights
    assert kept.format is None and kept.settings == {
        key: value for key, value in recognised.settings.items() if key != "model.num_classes"
    }
    command(name, "--eval-only", f"train.init_checkpoint={trained}", output="evaluated")
    assert "AP" in capsys.readouterr().out

    back = tmp_path / "back.pth"
    export_weights.main(["--checkpoint", str(trained), "--output", str(back), "--format", name])
    assert "position temperature" in capsys.readouterr().out
    ours, trace = recognised.format.to_ours(read(back).state)
    assert not trace.unknown and same(without_counters(ours), without_counters(state))


OTHER_DINO = "original_dino" if LACKING else "mmdet_dino"  # whose settings are not the config's, but can be


@pytest.mark.parametrize("name", [pytest.param(OTHER_DINO), pytest.param("hf_dab_detr", marks=pytest.mark.slow)])
def test_a_foreign_file_evaluates_and_exports_as_it_is(command, tmp_path, name, capsys):
    """Without training in between: config and weights make a detector, and one file that holds both, settings too."""
    from align_detr import Detector

    source = tmp_path / "theirs.pth"
    random_file(name, source)
    command(name, "--eval-only", f"train.init_checkpoint={source}")
    out = capsys.readouterr().out
    assert "Set for the weights" in out and "AP" in out

    file = tmp_path / "detector.safetensors"
    words = ["--config-file", config_name(name), "--checkpoint", str(source), "--output", str(file)]
    export.main([*words, *accepting()])
    image = (torch.rand(96, 128, 3) * 255).byte().numpy()
    alone = next(iter(Detector(file, device="cpu")(image, score_threshold=0.0)))
    config = get_config(CONFIGS[all_formats()[name].detector])
    config.train.ignore_checkpoint_settings = list(LACKING)
    direct = next(iter(Detector(config=config, weights=source, device="cpu")(image, score_threshold=0.0)))
    assert (alone.boxes == direct.boxes).all() and (alone.scores == direct.scores).all() and len(alone)


def test_export_takes_a_format_too(command, tmp_path, capsys):
    """`align-detr export RUN --format mmdet` is the same as of the checkpoint: what the issue of users names."""
    trained = command("mmdet_dino")
    export.main([str(trained.parent), "--output", str(tmp_path / "x.pth"), "--format", "mmdet"])
    assert "Align-DETR" in capsys.readouterr().out
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    assert content["meta"]["dataset_meta"]["classes"] and "bbox_head.cls_branches.0.weight" in content["state_dict"]
    export.main([str(trained.parent), "--output", str(tmp_path / "y.safetensors"), "--format", "original"])
    assert look_at(tmp_path / "y.safetensors").format.name == "original_dino"


def test_a_format_of_another_detector_is_an_error(command, tmp_path, capsys):
    """Hugging Face has no DINO: the message says what there is."""
    trained = command("mmdet_dino")
    with pytest.raises(SystemExit):
        arguments = ["--checkpoint", str(trained), "--output", str(tmp_path / "x.pth")]
        export_weights.main([*arguments, "--format", "huggingface"])
    assert "there are detrex, mmdet, original" in capsys.readouterr().err


def test_inspect_prints_what_a_file_is(tmp_path, capsys):
    """Format, settings, and every name: for a report of a bug, or to see why weights do not fit."""
    random_file("hf_conditional_detr", tmp_path / "x.bin")
    weights.main(["inspect", str(tmp_path / "x.bin")])
    out = capsys.readouterr().out
    assert "Hugging Face's Conditional DETR" in out and "model.position_embedding.offset" in out
    assert "model.query_position_embeddings.weight" in out and "query_embed.weight" in out
    with pytest.raises(SystemExit):
        weights.main(["inspect", str(tmp_path / "none")])
    assert "no such file" in capsys.readouterr().err


def test_a_file_for_another_detector_is_refused_in_one_line(command, tmp_path, capsys):
    """The weights of a Conditional DETR do not make half a DINO."""
    random_file("hf_conditional_detr", tmp_path / "x.bin")
    with pytest.raises(SystemExit):
        command("mmdet_dino", "--eval-only", f"train.init_checkpoint={tmp_path / 'x.bin'}")
    line = capsys.readouterr().err.splitlines()[-1]
    assert "holds the weights of a ConditionalDETR, but the config's model is a DINO" in line


def test_an_override_against_the_weights_is_refused(command, tmp_path, capsys):
    """Silence would cost accuracy, in either direction; the message says how to insist."""
    random_file("mmdet_dino", tmp_path / "x.pth")
    words = [f"train.init_checkpoint={tmp_path / 'x.pth'}", "model.position_embedding.offset=-0.5"]
    with pytest.raises(SystemExit):
        command("mmdet_dino", "--eval-only", "model.position_embedding.offset=-0.25", words[0])
    line = capsys.readouterr().err.splitlines()[-1]
    assert "model.position_embedding.offset=-0.25 contradicts x.pth" in line
    insist = accepting("model.position_embedding.offset")
    command("mmdet_dino", "--eval-only", "model.position_embedding.offset=-0.25", words[0], *insist)
    assert "AP" in capsys.readouterr().out


@pytest.mark.upstream("the engine's detectors have the option")
@pytest.mark.parametrize("name", ["mmdet_dino", "hf_conditional_detr"])
def test_an_eps_that_detrex_does_not_have_is_refused(command, tmp_path, capsys, name):
    """Boxes at the border of an image would differ a little; the message says how to accept that."""
    random_file(name, tmp_path / "x.pth")
    with pytest.raises(SystemExit):
        words = [f"train.init_checkpoint={tmp_path / 'x.pth'}", "+train.ignore_checkpoint_settings=[]"]
        command(name, "--eval-only", *words)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "inverse_sigmoid_eps=1e-05, which" in line and "add +train.ignore_checkpoint_settings=[model.inv" in line


@pytest.fixture
def named_data(data, tmp_path, monkeypatch):
    """`named_data("person", "dog", "car")`: the drawn data, whose classes have these names, in another order too."""

    def rename(*names):
        folder = tmp_path / "named"
        shutil.copytree(data, folder)
        for path in folder.glob("annotations/*.json"):
            content = json.loads(path.read_text())
            for category, name in zip(content["categories"], names, strict=True):
                category["name"] = name
            path.write_text(json.dumps(content))
        monkeypatch.setenv("TINY_COCO_ROOT", str(folder))
        return folder

    return rename


def test_a_detector_of_91_rows_is_evaluated_by_the_names_of_its_classes(command, named_data, tmp_path, capsys):
    """COCO's person is the data's person, whatever its number in either; what the data do not have is no detection of
    something else."""
    random_file("hf_conditional_detr", tmp_path / "x.bin", num_classes=91)
    folder = named_data("person", "dog", "zebra")
    ids = [c["id"] for c in json.loads((folder / "annotations/instances_val2017.json").read_text())["categories"]]
    content = torch.load(tmp_path / "x.bin", weights_only=True)
    bias = content["class_labels_classifier.bias"].fill_(-6.0)
    bias[[0, 1, 18, 44]] = torch.tensor([3.0, 2.0, 1.0, 4.0])  # nothing, person, dog, bottle
    torch.save(content, tmp_path / "x.bin")
    words = [f"train.init_checkpoint={tmp_path / 'x.bin'}", "model.select_box_nums_for_evaluation=400"]
    command("hf_conditional_detr", "--eval-only", *words, output="evaluated")
    assert "model.num_classes 3 -> 91" in capsys.readouterr().out
    found = json.loads((tmp_path / "evaluated" / "coco_instances_results.json").read_text())
    assert {entry["category_id"] for entry in found} == {ids[0], ids[1]}
    by_class = {id_: max(e["score"] for e in found if e["category_id"] == id_) for id_ in ids[:2]}
    assert by_class[ids[0]] > 0.8 > by_class[ids[1]] > 0.6


def test_a_detector_that_does_not_know_the_classes_is_not_evaluated(command, tmp_path, capsys):
    """COCO has no circles: an AP of zero would look like a bad detector."""
    random_file("hf_conditional_detr", tmp_path / "x.bin", num_classes=91)
    with pytest.raises(SystemExit):
        command("hf_conditional_detr", "--eval-only", f"train.init_checkpoint={tmp_path / 'x.bin'}")
    assert "circle" in capsys.readouterr().err.splitlines()[-1]


def test_fine_tuning_begins_with_the_rows_of_the_datas_classes(command, named_data, tmp_path, capsys):
    """By the command line: a person of COCO's 80 classes, of the data's three."""
    given = random_file("mmdet_dino", tmp_path / "x.pth", num_classes=80)
    named_data("dog", "helmet", "person")
    trained = command("mmdet_dino", f"train.init_checkpoint={tmp_path / 'x.pth'}")
    assert "initial weights for helmet" in capsys.readouterr().out
    rows = read(trained).state["class_embed.0.weight"]
    theirs = given["class_embed.0.weight"]
    assert (rows[0] - theirs[16]).abs().max() < 0.01 and (rows[2] - theirs[0]).abs().max() < 0.01
