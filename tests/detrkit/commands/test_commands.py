"""`align-detr`: what it dispatches to, that help and lists are fast, configs by name, completion."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from align_detr.modeling.losses import CLASSIFICATION_LOSSES
from detrkit.commands import choices, command_line
from detrkit.commands.configs import table
from detrkit.commands.main import COMMANDS, module_of
from detrkit.config.catalogue import ENTRIES, NOTE, config_files, find_config
from detrkit.datasets.formats import FORMATS
from detrkit.datasets.voc import DIFFICULT
from detrkit.inference.export import PRECISIONS
from detrkit.inference.runtimes import GRAPHS, OPENVINO_TYPES, RUNTIMES
from detrkit.weights import families

ROOT = Path(__file__).resolve().parents[3]
ITERATIONS_PER_EPOCH = 7500  # of 16 images


def align_detr(*words, cwd, python=("-m", "align_detr")):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *python, *map(str, words)]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)


def without_torch(*words, cwd):
    """Run the command line in a process where importing torch or numpy is an error."""
    script = "import sys; sys.modules['torch'] = sys.modules['numpy'] = None; import align_detr, detrkit; "
    script += "from detrkit.commands.main import main; main()"
    return align_detr(*words, cwd=cwd, python=("-c", script))


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["configs"], ["completion", "bash"], ["weights", "list"]], ids=" ".join
)
def test_lists_do_not_wait_for_pytorch(tmp_path, words):
    """An import of torch takes seconds; here it fails."""
    result = without_torch(*words, cwd=tmp_path)
    assert result.returncode == 0 and not result.stderr
    assert result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_does_not_wait_for_pytorch(tmp_path, name):
    """Each command has its own help: usage, what it does, options."""
    result = without_torch(name, "--help", cwd=tmp_path)
    assert result.returncode == 0 and not result.stderr
    assert result.stdout.startswith(f"usage: align-detr {name} ") and "\noptions:" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_examples_that_are_understood(name, monkeypatch, capsys):
    """Protects who copies them from an option or a config that is no longer there."""
    module = module_of(name)
    monkeypatch.setattr(module, "run", lambda args: print("understood"))
    parser = module.parser()
    assert len(parser.examples) >= 2 and parser.format_help().rstrip().endswith(parser.examples[-1])
    for example in parser.examples:
        words = shlex.split(example.removeprefix('eval "$(').removesuffix(')"'))
        assert words[:2] == ["align-detr", name]
        module.main(words[2:])
        assert capsys.readouterr().out == "understood\n"


@pytest.mark.parametrize("name", ["train", "eval", "demo", "analyze", "model", "export", "visualize-attention"])
def test_the_config_is_the_first_word_or_an_option(name):
    """The main form of the README is in the usage, and the former spelling goes on working."""
    parser = module_of(name).parser()
    assert "CONFIG" in parser.format_usage().partition("[key=value")[0].rpartition("]")[0].rsplit("\n", 1)[-1]
    required = {"demo": ["--input", "x"], "export": ["--output", "x"], "visualize-attention": ["--input", "x"]}
    rest = required.get(name, [])
    for words in (["dino_tiny", "a.b=1"], ["a.b=1", "dino_tiny"], ["--config-file", "dino_tiny", "a.b=1"]):
        for line in ([*words, *rest], [*rest, *words] if name == "export" else [*words, *rest]):
            args = command_line.parse(parser, line)
            assert args.config == "dino_tiny" and args.overrides == ["a.b=1"]


MISTAKES = [
    ("train --data mine --epohcs 3", 2, "there is no option --epohcs: did you mean --epochs?"),
    ("train dino_tiny dab_detr_tiny", 2, "dab_detr_tiny is not a change as key=value, and dino_tiny is given already"),
    ("train --num-gpus two dino_tiny", 2, "invalid int value: 'two'"),
    ("train", 1, "no config: give its name (`align-detr configs` lists them)"),
    ("train dino_tinny", 1, "no such config: dino_tinny; did you mean dino_tiny"),
    ("train --resume outputs/nine", 1, "no such folder or config: outputs/nine; did you mean outputs/mine?"),
    ("model outputs/nine", 1, "no such config: outputs/nine"),
    ("train dino_tiny --epochs 3", 1, "--epochs is for a folder of images: give it by --data"),
    ("train dino_tiny train.init_checkpoint=nowhere.pth", 1, "train.init_checkpoint=nowhere.pth: no such file"),
    ("train dino_tiny train.init_checkpoint=cut.pth", 1, "cut.pth is incomplete: it was cut off while it was written"),
    ("train dino_tiny train.init_checkpoint=cut.safetensors", 1, "cut.safetensors is incomplete, "),
    ("train dino_tiny train.init_checkpoint=empty.pth", 1, "empty.pth is empty"),
    ("train dino_tiny train.init_checkpoint=net.onnx", 1, "net.onnx is an ONNX file, which holds a graph"),
    ("train dino_tiny train.output_dir=done", 1, "done holds a training already (model_final.pth): --resume goes on"),
    ("train dino_tiny train.output_dir=net.onnx/x", 1, "cannot write to train.output_dir=net.onnx/x: Not a directory;"),
    ("train dino_tiny --resume train.output_dir=new", 1, "new has no checkpoint to resume from: leave out --resume"),
    ("train --data nowhere", 1, "no such folder: nowhere"),
    ("eval", 1, "nothing to evaluate: give the folder of a training, or a config and --checkpoint"),
    ("eval done", 1, "done is not the folder of a training: it has no config.yaml"),
    ("eval dino_tiny --checkpoint nowhere.xml", 1, "no such file: nowhere.xml"),
    ("eval net.onnx", 1, "net.onnx has no test data: give a config that has"),
    ("eval dino_tiny --checkpoint net.onnx --num-gpus 2", 1, "net.onnx: a graph is evaluated in one process"),
    ("eval dino_tiny --checkpoint net.onnx --tta", 1, "net.onnx is a graph of one pass: --tta needs the detector"),
    ("eval dino_tiny --checkpoint net.onnx train.init_checkpoint=a.pth", 1, "a.pth is not evaluated, as net.onnx is: "),
    ("eval dino_tiny --runtime openvino", 1, "--runtime and --dtype are for graphs (.onnx, .xml)"),
    ("demo net.onnx --input x --runtime tensorrt", 2, "argument --runtime: invalid choice: 'tensorrt'"),
    ("demo --input x", 1, "no detector: give the folder of a training, an exported file, or a config and --checkpoint"),
    ("demo output --input x", 1, "no such folder, file or config: output"),
    ("demo outputs/mini --input x", 1, "no such folder, file or config: outputs/mini; did you mean outputs/mine?"),
    ("demo outputs/mine --input x --output net.onnx/x", 1, "cannot write to --output net.onnx/x: Not a directory; "),
    ("export outputs/mine --output net.onnx/x.onnx", 1, "cannot write to --output net.onnx: Not a directory; choose"),
    ("demo dino_tiny --checkpoint nowhere.pth --input x", 1, "no such checkpoint: nowhere.pth"),
    ("analyze dino_tiny --batch-size 0", 1, "--batch-size and --num-images are at least 1"),
    ("model dino_tinny", 1, "no such config: dino_tinny"),
    ("export --output x.onnx", 1, "no detector: give the folder of a training"),
    ("export-weights --checkpoint cut.pth --output x.pth", 1, "cut.pth is incomplete"),
    ("convert nowhere --output x", 1, "no such dataset: nowhere"),
    ("make-data", 2, "one of the arguments --synthetic --from is required"),
    ("weights inspect nowhere.pth", 1, "no such file: nowhere.pth"),
    ("visualize-results --input nowhere.json --output x.png", 1, "no such file: nowhere.json"),
]


@pytest.mark.parametrize("line, status, message", MISTAKES, ids=[line for line, *_ in MISTAKES])
def test_mistakes_do_not_wait_for_pytorch(tmp_path, line, status, message):
    """In one line that says what to do, whatever else is wrong later: data, for instance, are not there at all."""
    (tmp_path / "done").mkdir()
    (tmp_path / "outputs/mine").mkdir(parents=True)
    (tmp_path / "outputs/mine/config.yaml").touch()
    torch.save({"model": {"a": torch.ones(1000)}}, tmp_path / "done/model_final.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "done/model_final.pth").read_bytes()[:1500])
    whole = save({"a": torch.ones(4)})
    (tmp_path / "cut.safetensors").write_bytes(whole[:-10])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    before = set(tmp_path.rglob("*"))
    result = without_torch(*line.split(), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (status, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and message in result.stderr
    assert set(tmp_path.rglob("*")) == before


def test_folders_of_trainings_are_proposed_where_they_are_taken(tmp_path):
    """Protects from the proposal of what was typed: `model` takes configs alone."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").touch()
    for trainings, hint in ((True, rf"; did you mean {tmp_path}/mine\?$"), (False, "/mini$")):
        with pytest.raises(FileNotFoundError, match=hint):
            find_config(f"{tmp_path}/mini", trainings=trainings)


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


def test_choices_are_the_librarys():
    """Options have them as constants, since the library's modules import PyTorch."""
    assert choices.LAYOUTS == tuple(FORMATS)
    assert choices.DIFFICULT == DIFFICULT
    assert list(choices.WEIGHT_FORMATS) == families()
    assert (choices.RUNTIMES, choices.RUNTIME_FILES) == (tuple(RUNTIMES), GRAPHS)
    assert choices.RUNTIME_TYPES == tuple(OPENVINO_TYPES) and choices.PRECISIONS == tuple(PRECISIONS)


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
def test_the_list_of_configs_tells_what_they_are(name, recorded_configs):
    """Schedule, parameters and whose supervision it is."""
    entry, cfg = ENTRIES[name], recorded_configs[name]
    batch, iterations = cfg["dataloader.train.total_batch_size"], cfg["train.max_iter"]
    if cfg["dataloader.train.dataset.names"].startswith(("coco_2017", "lvis_v1")):
        assert entry.schedule == f"{iterations * batch // (16 * ITERATIONS_PER_EPOCH)} epochs"
        assert batch == 16 or entry.backbone == "Lite0"
    else:
        assert entry.schedule == f"{iterations} x {batch} images"
    assert round(cfg["parameters"] / 1e6, 2) == entry.parameters
    assert entry.model.startswith("Align-DETR on ") == ("align" in name)


def test_the_list_can_be_narrowed():
    assert set(ENTRIES) == set(config_files())
    text = table(["dab", "dc5"])
    assert text.count("R50-DC5") == 2 and "Co-DINO" not in text and text.endswith(NOTE)
    with pytest.raises(ValueError, match="no config has yolo in its name"):
        table(["yolo"])


def run_alone(*words, cwd, **environment):
    """As `run_python`, in a process that imports everything: what needs no PyTorch is faster so."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects"), **environment}
    subprocess.run([sys.executable, *words], env=environment, cwd=cwd, capture_output=True, timeout=300)


def completions(line, folder, cache=None, run=run_alone):
    """What Tab offers behind a line, by argcomplete's protocol for bash."""
    answer = folder.with_suffix(".answer")
    answer.unlink(missing_ok=True)
    environment = {
        "XDG_CACHE_HOME": str(cache or folder.with_suffix(".cache")),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    run("-m", "align_detr", cwd=folder, **environment)
    return [word.strip() for word in answer.read_text().split("\n") if word]


@pytest.mark.parametrize(
    "line, found",
    [
        ("align-detr mak", ["make-data"]),
        ("align-detr train align_detr_ti", ["align_detr_timm_4scale_12ep", "align_detr_tiny"]),
        ("align-detr train --d", ["--data", "--dist-url"]),
        ("align-detr eval --num", ["--num-gpus", "--num-machines"]),
        ("align-detr eval output --which ", ["best", "final"]),
        ("align-detr convert --format tens", ["tensorflow-csv"]),
        ("align-detr convert --format ", list(choices.LAYOUTS)),
        ("align-detr demo dino_tiny --inp", ["--input"]),
        ("align-detr demo dino_tiny --input ", ["photos/"]),
        ("align-detr eval phot", ["photos/"]),
        ("align-detr completion ", ["bash", "zsh", "fish"]),
        ("align-detr demo --checkpoint zo", ["zoo:"]),
        ("align-detr demo zoo:align_detr_r50_4scale_12ep_rel", ["align_detr_r50_4scale_12ep_released"]),
        ("align-detr serve zoo:align_detr_r50_4scale_12ep_rel", ["align_detr_r50_4scale_12ep_released"]),
        ("align-detr eval --checkpoint phot", ["photos/"]),
    ],
)
def test_tab_completes_options_choices_and_configs(tmp_path, line, found):
    """Configs only where a config stands; files where files stand."""
    (tmp_path / "photos").mkdir()
    assert completions(line, tmp_path) == found


@pytest.mark.parametrize(
    "line, found",
    [
        ("align-detr train align_detr_tiny model.criterion.al", ["model.criterion.alpha="]),
        ("align-detr train align_detr_tiny train.amp.enabled=", ["True", "False"]),
        ("align-detr train align_detr_tiny model.criterion.loss_class_type=", [*CLASSIFICATION_LOSSES]),
        ("align-detr train --config-file dino_tiny optimizer.l", ["optimizer.lr="]),
        ("align-detr model dino_tiny model.num_cl", ["model.num_classes="]),
    ],
)
def test_tab_completes_keys_and_values_of_the_config(tmp_path, run_python, line, found):
    """Of the config on the line. The second Tab takes them from the cache."""
    assert completions(line, tmp_path, run=run_python) == found
    assert completions(line, tmp_path) == found
    assert (tmp_path.with_suffix(".cache") / "align-detr/keys.json").is_file()


def test_completion_notices_a_changed_config(tmp_path, run_python):
    """And a damaged cache is made anew."""
    config, cache = tmp_path / "mine.yaml", tmp_path / "cache"
    for number, text in enumerate(["train: {alpha: 1, abc: {d: 2}}", "train: {beta: 1}", "train: {gamma: true}"]):
        config.write_text(text)
        os.utime(config, (number, number))
        if number == 2:
            (cache / "align-detr/keys.json").write_text("[")
        found = [["train.alpha=", "train.abc."], ["train.beta="], ["train.gamma="]][number]
        offered = completions("align-detr train mine.yaml train.", tmp_path, cache, run_python)
        assert sorted(offered) == sorted(found)


@pytest.mark.parametrize("shell, call", [("bash", "complete "), ("zsh", "compdef "), ("fish", "complete --command")])
def test_the_code_for_each_shell(tmp_path, shell, call):
    result = align_detr("completion", shell, cwd=tmp_path)
    assert result.returncode == 0 and call in result.stdout and "align-detr" in result.stdout


def test_completion_without_argcomplete(tmp_path):
    """One line that names the package."""
    script = "import sys; sys.modules['argcomplete'] = None; import align_detr; "
    script += "from detrkit.commands.main import main; main()"
    result = align_detr("completion", "bash", cwd=tmp_path, python=("-c", script))
    assert result.returncode == 1 and result.stderr == "error: completion needs a package: pip install argcomplete\n"


@pytest.mark.parametrize("words", ["configs", "", "--version", "train --help", "completion bash"])
def test_a_closed_pipe_is_no_error(tmp_path, words):
    """`align-detr configs | head -1`, with a reader that ends before the first line is written."""
    script = f"set -o pipefail; {sys.executable} -m align_detr {words} | (exec <&-; sleep 0.1)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects")}
    result = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode in (0, 1) and not result.stderr  # argparse ignores the error of --help
