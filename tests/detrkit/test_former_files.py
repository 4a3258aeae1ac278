"""Files that the version before the workbench was a package of its own has written: they work as before."""

import json
import shutil
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FORMER = ROOT / "tests/golden/former_files"


@pytest.fixture(scope="module")
def align_detr(run_python):
    """`align_detr(folder, …)`: what a command that must succeed prints, run in `folder`."""

    def run(folder, *words):
        done = run_python("-m", "align_detr", *words, cwd=folder, TINY_COCO_ROOT="data")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory, align_detr):
    """A folder with the data that the files are of."""
    folder = tmp_path_factory.mktemp("former")
    align_detr(folder, "make-data", "--synthetic", "--train", 6, "--val", 2, "--output", "data")
    return folder


def weights(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.engine("the files name classes by the modules of the engine that wrote them")
def test_a_checkpoint_is_resumed_to_the_same_end(place, align_detr):
    """Protects trainings under way: the config is taken for the same, and the last weights are those of the former
    version."""
    run = place / "output/run"
    run.mkdir(parents=True)
    for name in ("config.yaml", "model_0000001.pth"):
        shutil.copy(FORMER / "run" / name, run)
    (run / "last_checkpoint").write_text("model_0000001.pth")
    align_detr(place, "train", run / "config.yaml", "--resume")
    ours, theirs = weights(run / "model_final.pth"), weights(FORMER / "run/model_final.pth")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-5), name


@pytest.mark.engine("the files name classes by the modules of the engine that wrote them")
def test_a_run_is_evaluated_by_its_saved_config(place, align_detr):
    """Protects results: YAML configs name classes by their former modules."""
    checkpoint = FORMER / "run/model_final.pth"
    printed = align_detr(
        place, "eval", FORMER / "run/config.yaml", f"train.init_checkpoint={checkpoint}", "train.output_dir=evaluated"
    )
    assert "copypaste: AP," in printed
    assert json.loads((place / "output/run/coco_instances_results.json").read_text())


@pytest.mark.engine("its detector is 16 channels wide; detrex computes the positions of its queries for 256")
def test_a_config_of_a_folder_trains_on(place, align_detr):
    """Protects `config.py` that `train --data` wrote: it imports from modules that have moved."""
    folder = place / "folder"
    align_detr(place, "convert", place / "data", "--output", folder / "data", "--format", "coco")
    text = (FORMER / "folder/config.py.txt").read_text()
    text = text.replace("FOLDER", str(folder)).replace("DATA", str(place / "data"))
    (folder / "config.py").write_text(text)
    align_detr(place, "train", folder / "config.py", f"train.init_checkpoint={FORMER}/folder/model_final.pth")
    assert (place / "output/folder/model_final.pth").is_file()


@pytest.mark.engine("the files name classes by the modules of the engine that wrote them")
def test_an_exported_file_detects(place):
    """Protects deployed detectors: a `.safetensors` file of the former version opens and runs."""
    from align_detr import Detector

    detector = Detector(FORMER / "run.safetensors", device="cpu")
    (found,) = detector([next((place / "data/val2017").iterdir())], score_threshold=0.0)
    assert len(found.scores) == 8 and set(found.labels) <= {"circle", "square", "triangle"}


def test_former_module_names_import(run_python):
    """Protects configs of users, which import from the package that held everything."""
    program = (
        "from align_detr.data import register_coco, register_tiny_coco\n"
        "from align_detr.config import get_project_config\n"
        "from align_detr.commands.command_line import load_config\n"
        "assert get_project_config('dino/configs/dino_tiny.py').model.num_queries == 30\n"
        "assert load_config('dino_tiny', ['train.max_iter=7']).train.max_iter == 7\n"
    )
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
