"""`align-detr`: what it dispatches to, that help and lists are fast, configs by name, completion."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from detrkit.commands.configs import table
from detrkit.commands.main import COMMANDS
from detrkit.config.catalogue import ENTRIES, NOTE, config_files, find_config

ROOT = Path(__file__).resolve().parents[3]
ITERATIONS_PER_EPOCH = 7500  # of 16 images


def align_detr(*words, cwd, python=("-m", "align_detr")):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *python, *map(str, words)]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("words", [[], ["--help"], ["configs"], ["completion", "bash"], ["make-data", "--help"]])
def test_help_and_lists_do_not_wait_for_pytorch(tmp_path, words):
    """An import of torch takes seconds; here it fails."""
    script = "import sys; sys.modules['torch'] = None; import align_detr; "
    script += "from detrkit.commands.main import main; main()"
    result = align_detr(*words, cwd=tmp_path, python=("-c", script))
    assert result.returncode == 0 and not result.stderr
    assert result.stdout


def test_a_wrong_platform_is_told_in_one_line(tmp_path, monkeypatch):
    """Protects who mistypes it from a traceback: it is found out while the package is imported."""
    monkeypatch.setenv("ALIGN_DETR_PLATFORM", "detrex")
    result = align_detr("configs", cwd=tmp_path)
    assert result.returncode == 1 and not result.stdout
    assert result.stderr.startswith("error: ALIGN_DETR_PLATFORM='detrex': set it to") and result.stderr.count("\n") == 1


def test_unknown_commands_are_told_with_the_nearest(tmp_path):
    result = align_detr("trian", "x", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "error: there is no command trian: did you mean train?\n"


def test_every_command_is_there_and_names_itself(tmp_path):
    """The module of each; and one line of help names the command, not a file."""
    for name, command in COMMANDS.items():
        module = command.module or name.replace("-", "_")
        assert (ROOT / f"detrkit/commands/{module}.py").is_file()
    assert align_detr("eval", "--help", cwd=tmp_path).stdout.startswith("usage: align-detr eval ")


def test_configs_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    path = config_files()["align_detr_tiny"]
    assert find_config("align_detr_tiny") == path and find_config(str(path)) == path
    monkeypatch.chdir(tmp_path)
    Path("align_detr_tiny").write_text("")  # a file of that name comes first
    assert find_config("align_detr_tiny") == Path("align_detr_tiny")
    for near in ("align_detr_tinny", "align_detr_tiny.py", "configs/align_detr_tiny.py"):
        with pytest.raises(FileNotFoundError, match="did you mean align_detr_tiny"):
            find_config(near)
    with pytest.raises(FileNotFoundError, match="`align-detr configs` lists"):
        find_config("yolo")


@pytest.mark.slow
def test_the_first_word_is_the_config(tmp_path):
    """Without --config-file; its mistakes are told before anything else."""
    result = align_detr("train", "align_detr_tiny", "train.max_itr=10", cwd=tmp_path)
    assert result.returncode == 1 and "did you mean train.max_iter?" in result.stderr
    result = align_detr("train", "align_detr_tinny", "train.max_iter=10", cwd=tmp_path)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: no such config: align_detr_tinny; did you mean align_detr_tiny or ")


@pytest.mark.parametrize("name", config_files())
def test_the_list_of_configs_tells_what_they_are(name):
    """Schedule, parameters and whose supervision it is."""
    entry, cfg = ENTRIES[name], LazyConfig.load(str(config_files()[name]))
    batch, iterations = cfg.dataloader.train.total_batch_size, cfg.train.max_iter
    if "coco_2017" in cfg.dataloader.train.dataset.names:
        assert entry.schedule == f"{iterations * batch // (16 * ITERATIONS_PER_EPOCH)} epochs"
        assert batch == 16 or entry.backbone == "Lite0"
    else:
        assert entry.schedule == f"{iterations} x {batch} images"
    cfg.model.device = "cpu"
    with torch.device("meta"):  # no numbers, only shapes
        model = instantiate(cfg.model)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == entry.parameters
    assert entry.model.startswith("Align-DETR on ") == ("align" in name)


def test_the_list_can_be_narrowed():
    assert set(ENTRIES) == set(config_files())
    text = table(["dab", "dc5"])
    assert text.count("R50-DC5") == 2 and "Co-DINO" not in text and text.endswith(NOTE)
    with pytest.raises(ValueError, match="no config has yolo in its name"):
        table(["yolo"])


@pytest.mark.parametrize(
    "line, found",
    [
        ("mak", "make-data"),
        ("train align_detr_t", "align_detr_tiny"),
        ("eval --num", "--num-gpus --num-machines"),
        ("demo --lay", "--layer"),
    ],
)
def test_bash_completes(tmp_path, line, found):
    script = align_detr("completion", "bash", cwd=tmp_path).stdout
    words = f"align-detr {line}"
    script += f'COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; _align_detr; echo "${{COMPREPLY[@]}}"'
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.strip() == found


def test_a_closed_pipe_is_no_error(tmp_path):
    """`align-detr configs | head -1`."""
    script = f"{sys.executable} -m align_detr configs | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects")}
    result = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.startswith("config ") and not result.stderr
