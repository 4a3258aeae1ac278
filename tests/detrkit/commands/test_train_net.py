"""The command line of `tools/train_net.py`: training, resuming, evaluating, and what it says to mistakes."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import kills
import pytest
import torch
from kills import same

from detrkit.config.load import call_parameters, load_config
from detrkit.training import builders

TOOLS = Path(__file__).resolve().parents[3] / "tools"
CONFIG = str(Path(__file__).with_name("toy_config.py"))
LOGGERS = ("detectron2", "detrex", "align_detr", "detrkit", "projects", "fvcore")


@pytest.fixture
def tool(monkeypatch):
    """The tool as a module, with loggers as in a fresh process."""
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    from detrkit.commands import train as train_net

    return train_net


@pytest.fixture
def run(tool, tmp_path):
    """`run("--resume", "a.b=1")` runs the tool's `main` with the toy config, with tmp_path for output."""

    def run(*arguments, config=CONFIG):
        options = [argument for argument in arguments if argument.startswith("--")]
        overrides = [f"train.output_dir={tmp_path}", *(a for a in arguments if not a.startswith("--"))]
        tool.train_net(["--config-file", config, *options, *overrides])

    return run


@pytest.fixture
def fails(run, capsys):
    """`fails("a.b=1")` runs the tool, which has to stop with one line of error; returns that line."""

    def fails(*arguments, **kwargs):
        with pytest.raises(SystemExit) as stop:
            run(*arguments, **kwargs)
        assert stop.value.code == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")

    return fails


def load(path):
    return torch.load(path, weights_only=True)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def last_results(out):
    """{task: AP} of the table that ends the output."""
    found = re.findall(r"copypaste: Task: (\w+)\n.*copypaste: AP\n.*copypaste: (\S+)", out)
    return {task: float(value) for task, value in found}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_training_equals_one_in_one_go(tool, run, fails, monkeypatch, tmp_path, precision):
    """Weights, optimizer, schedule, average and best model continue as if nothing had happened."""
    monkeypatch.setattr(builders, "autocast_is_faster", lambda dtype, device: True)  # whatever CPU this is
    amp = ["train.amp.enabled=True", "train.amp.dtype=bfloat16"] if precision == "bfloat16" else []
    run(*amp, f"train.output_dir={tmp_path}/straight")
    broken = [*amp, f"train.output_dir={tmp_path}/broken"]
    monkeypatch.setenv("FAIL_AT", "4")
    assert fails(*broken) == "image 7 is broken"
    monkeypatch.delenv("FAIL_AT")
    assert (tmp_path / "broken/last_checkpoint").read_text() == "model_best.pth"
    run("--resume", *broken)

    straight, resumed = (load(tmp_path / name / "model_final.pth") for name in ("straight", "broken"))
    assert straight.keys() == resumed.keys() >= {"model", "optimizer", "trainer", "ema_state", "iteration"}
    assert straight["iteration"] == resumed["iteration"] == 5
    assert same(resumed, straight)
    assert kills.metrics(tmp_path / "broken") == kills.metrics(tmp_path / "straight")
    assert len(metrics(tmp_path / "broken")) == 7


def test_a_cpu_without_units_for_bfloat16_trains_in_float32(run, monkeypatch, tmp_path, capfd):
    """Which is faster there: the same weights as without `train.amp`, and a line that says so."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    amp = ["train.amp.enabled=True", "train.amp.dtype=bfloat16"]
    run(*amp, f"train.output_dir={tmp_path}/mixed")
    assert "no units for bfloat16" in "".join(capfd.readouterr())
    run(f"train.output_dir={tmp_path}/exact")
    assert same(*(load(tmp_path / name / "model_final.pth")["model"] for name in ("mixed", "exact")))


def test_schedule_clipping_and_losses_are_recorded(run, tmp_path):
    """metrics.json has what a plot needs, for each iteration."""
    run("train.model_ema.enabled=False")
    rows = metrics(tmp_path)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert {"total_loss", "loss_class", "loss_bbox", "loss_class_0", "lr", "grad_norm"} <= rows[0].keys()
    assert rows[0]["lr"] == 0.1 and rows[5]["lr"] < 0.02
    assert rows[2]["bbox/AP"] != rows[6]["bbox/AP"] and "ema_state" not in load(tmp_path / "model_final.pth")
    assert (tmp_path / "config.yaml").exists() and list(tmp_path.glob("events.out.*"))


def test_gradients_are_clipped_to_the_norm(run, tmp_path):
    """With plain SGD a step of length lr * max_norm is the longest there is."""
    arguments = ["optimizer._target_=toy_detector.plain_sgd", "optimizer.weight_decay=0"]
    arguments += ["train.clip_grad.params.max_norm=0.001", "train.checkpointer.period=1", "train.max_iter=2"]
    run(*arguments)
    first, second = (load(tmp_path / f"model_000000{i}.pth")["model"] for i in range(2))
    trained = ("norm.weight", "norm.bias", "head.weight", "head.bias")
    step = torch.cat([(first[name] - second[name]).flatten() for name in trained])
    lr = metrics(tmp_path)[1]["lr"]
    assert step.norm().item() == pytest.approx(lr * 0.001, rel=1e-3)


@pytest.mark.parametrize("use_only", ["True", "False"])
def test_evaluation_of_a_checkpoint_repeats_that_of_its_training(run, capsys, tmp_path, use_only):
    """The figures of --eval-only are those at the end of the training, of plain and of averaged weights."""
    ema = f"train.model_ema.use_ema_weights_for_eval_only={use_only}"
    run(ema)
    trained = last_results(capsys.readouterr().out)
    assert trained.keys() == ({"bbox"} if use_only == "True" else {"bbox", "bbox_without_ema"})
    run("--eval-only", ema, f"train.init_checkpoint={tmp_path}/model_final.pth")
    assert last_results(capsys.readouterr().out) == trained
    run("--eval-only", "--resume", ema)
    assert last_results(capsys.readouterr().out).keys() == trained.keys()


def test_weights_of_a_part_of_the_model_are_not_evaluated(run, fails, tmp_path):
    """A backbone's, say: AP would be that of random heads. Training does start from them."""
    torch.save({"model": {f"norm.{name}": torch.ones(4) for name in ("weight", "bias")}}, tmp_path / "part.pth")
    weights = f"train.init_checkpoint={tmp_path}/part.pth"
    said = fails("--eval-only", weights)
    assert "lacks 4 of the model's tensors" in said and "norm.running_mean" in said
    run(weights)


def test_a_dry_run_goes_through_everything(run, tmp_path):
    """train.fast_dev_run shows in a few iterations whether a config works."""
    run("train.fast_dev_run.enabled=True", "train.max_iter=90000")
    rows = metrics(tmp_path)
    assert len(rows) == 21 and "bbox/AP" in rows[9] and (tmp_path / "model_final.pth").exists()


def test_resuming_without_a_checkpoint_starts_anew(run, tmp_path):
    """The same command starts a job and restarts it, as job schedulers want it."""
    run("--resume", "train.max_iter=2")
    assert load(tmp_path / "model_final.pth")["iteration"] == 1


def test_weights_and_biases_gets_the_scalars(run, monkeypatch):
    """Every metric of metrics.json, at its iteration, with the parameters of `wandb.init` from the config."""
    wandb = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run("train.wandb.enabled=True", "train.wandb.params.dir=.", "train.wandb.params.name=mine")
    assert wandb.init.call_args.kwargs["name"] == "mine"
    logged = wandb.init.return_value.log.call_args_list
    assert [call.kwargs["step"] for call in logged] == list(range(7))
    assert {"total_loss", "lr"} <= logged[0].args[0].keys() and "bbox/AP" in logged[-1].args[0]
    wandb.init.return_value.finish.assert_called_once()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["train.maxiter=3"], "did you mean train.max_iter?"),
        (["max_iter=3"], "did you mean train.max_iter?"),
        (["model.num_clases=3"], "did you mean model.num_classes?"),
        (["dataloader.train.batchsize=1"], "did you mean dataloader.train.batch_size?"),
        (["optimizer.betas.2=0.9"], "optimizer.betas.2"),
        (["train.zzz.qqq=1"], "+train.zzz.qqq"),
        (["train.amp=True"], "train.amp.enabled"),
        (["train.max_iter=many"], "train.max_iter is a number, not many"),
        (["train.amp.enabled=3"], "train.amp.enabled is true or false, not 3"),
        (["train.device=cuda:99"], "this machine has"),
        (["train.device=gpu"], "this machine has"),
        (["train.amp.enabled=True", "train.amp.dtype=float8"], "float16, bfloat16"),
        (["train.init_checkpoint=/nowhere/x.pth"], "/nowhere/x.pth"),
        (["train.wandb.enabled=True"], "wandb"),
        (["model.scale=inf"], "iteration 0: loss_class=inf"),
        (["optimizer.lr=1e30", "train.clip_grad.enabled=False"], "not finite at iteration"),
    ],
)
def test_mistakes_are_told_in_one_line(fails, monkeypatch, arguments, said):
    """What is wrong, where, and what to write instead."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert said in fails(*arguments)


@pytest.mark.parametrize(
    "words",
    [
        ["--config-file", "c.py", "--resume", "--num-gpus", "2", "a.b=1", "~c", "d=-1"],
        ["--config-file", "c.py", "a.b=1", "--resume", "~c", "--num-gpus", "2", "d=-1"],
        ["a.b=1", "~c", "d=-1", "--num-gpus=2", "--resume", "--config-file", "c.py"],
    ],
)
def test_options_and_overrides_come_in_any_order(tool, words):
    """The words that a person adds to a command of yesterday come last."""
    args = tool.parse(tool.parser(), words)
    assert (args.config, args.resume, args.num_gpus) == ("c.py", "required", 2)
    assert args.overrides == ["a.b=1", "~c", "d=-1"]


def test_a_stray_word_is_named(run, capsys):
    """Neither a config, which is given, nor an override."""
    with pytest.raises(SystemExit) as stop:
        run("nonsense")
    assert stop.value.code == 2 and "error: nonsense is not a change as key=value" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--resume"], ["--resume", "auto"], ["--resume=auto"], []])
def test_resume_with_nothing_to_resume(tool, tmp_path, capsys, words):
    """A mistyped folder does not begin another training of days; schedulers ask for that by `auto`."""
    overrides = [f"train.output_dir={tmp_path}/new", "train.max_iter=1", "train.eval_period=0"]
    if words == ["--resume"]:
        with pytest.raises(SystemExit) as stop:
            tool.main([CONFIG, *words, *overrides])
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 1 and f"{tmp_path}/new has no checkpoint to resume from" in line
        assert not (tmp_path / "new").exists()
        words = ["--resume"]
        tool.train_net(["--config-file", CONFIG, *words, *overrides])  # as detectron2 does it
    else:
        tool.main([CONFIG, *words, *overrides])
    assert (tmp_path / "new/model_final.pth").is_file()


def test_an_unknown_option_behind_an_override_is_named(tool, capsys):
    with pytest.raises(SystemExit) as stop:
        tool.parse(tool.parser(), ["a=1", "--resum3", "b=2"])
    assert stop.value.code == 2 and "--resum3" in capsys.readouterr().err


def test_keys_that_are_there_can_be_set(tool):
    """Nested, in lists, new ones by `+`, and arguments of a constructor that the config does not name."""
    overrides = ["optimizer.betas.1=0.5", "+notes.author=me", "model.num_classes=7", "train.seed=null", "model.scale=2"]
    cfg = load_config(CONFIG, overrides)
    assert (cfg.optimizer.betas[1], cfg.notes.author, cfg.model.num_classes, cfg.model.scale) == (0.5, "me", 7, 2)


def test_arguments_that_pass_through_kwargs_are_known(tool):
    """An override may name an argument of the base class that a constructor hands its **kwargs to."""

    class Base:
        def __init__(self, alpha=1, **rest):
            """Hands nothing on."""

    class Middle(Base):
        pass

    class Child(Middle):
        def __init__(self, beta=2, **kwargs):
            super().__init__(**kwargs)

    assert call_parameters(Child) == {"alpha", "beta"}
    assert call_parameters("torch.nn.Linear") >= {"in_features", "bias"}
    assert call_parameters("no.such.thing") == call_parameters(None) == set()


def test_a_wrong_config_path_suggests_a_right_one(fails):
    assert CONFIG in fails(config=CONFIG.replace("toy_config", "toy_confg"))
    assert "align-detr configs" in fails(config="")
    assert "has no model" in fails(config=str(TOOLS.parent / "configs/common/train.py"))


@pytest.mark.parametrize("choice, expected", [((), True), (("+optimizer.fused=False",), False)])
def test_the_optimizer_has_one_kernel_for_all_parameters(tool, choice, expected):
    """Unless the config chooses, or PyTorch has none for the device; the groups and rates are the config's."""
    cfg = load_config(CONFIG, list(choice))
    model = torch.nn.Linear(2, 2)
    try:
        torch.optim.AdamW(model.parameters(), fused=True)
    except RuntimeError:
        expected = False
    (group,) = builders.build_optimizer(cfg, model).param_groups
    assert bool(group["fused"]) is expected and group["lr"] == cfg.optimizer.lr and len(group["params"]) == 2


def test_compiling_changes_no_names(tool, monkeypatch):
    """`train.compile` reaches backbone, encoder and decoder, where there are such; checkpoints stay as they are."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda forward: compiled.append(forward) or forward)
    model = torch.nn.Module()
    model.backbone = torch.nn.Linear(2, 2)
    model.transformer = torch.nn.Module()
    model.transformer.decoder = torch.nn.Linear(2, 2)
    names = list(model.state_dict())
    builders.compile_parts(model)
    assert [forward.__self__ for forward in compiled] == [model.backbone, model.transformer.decoder]
    assert list(model.state_dict()) == names
    builders.compile_parts(torch.nn.Linear(2, 2))


def test_a_model_with_too_few_classes_is_refused(tool):
    """Instead of an index error on some image, hours later."""
    from detectron2.data import MetadataCatalog

    MetadataCatalog.get("three_classes").set(thing_classes=["a", "b", "c"])
    cfg = load_config(CONFIG, ["model.num_classes=2"])
    with pytest.raises(ValueError, match="model.num_classes=2, but three_classes has 3 classes"):
        builders.check_classes(cfg, ["three_classes"])
    cfg.model.num_classes = 80
    builders.check_classes(cfg, ["three_classes"])


def test_a_workers_error_is_told_by_its_last_line(tool):
    """What a data loader's worker raised is a traceback in the message; the person wants the file's name."""
    from detrkit.commands.error_line import _one_line

    error = OSError("Caught OSError in DataLoader worker process 0.\nTraceback:\n  File x\nOSError: a.jpg is cut off\n")
    assert _one_line(error) == "a.jpg is cut off"
    assert _one_line(ValueError("two\n  lines")) == "two lines"
    assert _one_line(ValueError()) == "ValueError"


def start(*arguments, **kwargs):
    command = [sys.executable, str(TOOLS / "train_net.py"), "--config-file", CONFIG, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes, **kwargs)


def test_an_error_ends_all_processes_with_one_line(tmp_path):
    """Two processes that fail say so once, on stderr, without a traceback; that is in the log file."""
    process = start("--num-gpus", "2", f"train.output_dir={tmp_path}", "model.fail_at=1")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert [line for line in err.splitlines() if line.startswith("error: ")] == ["error: image 7 is broken"]
    assert "Traceback" not in out + err and re.search(r"iter: [01]\b", out)
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    """Hours of training are not lost to a key, and the command to continue can be copied."""
    endless = ["train.max_iter=1000000", "train.eval_period=0", "train.checkpointer.period=0", "train.log_period=20"]
    process = start(f"train.output_dir={tmp_path}", *endless)
    for line in process.stdout:
        if re.search(r"iter: (39|40)\b", line):  # as the printer counts from 0 or from 1
            os.killpg(process.pid, signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    (command,) = re.findall(r"--resume to go on: (python .*)", out)
    last = (tmp_path / "last_checkpoint").read_text()
    assert load(tmp_path / last)["iteration"] >= 39
    assert "--resume" in command and f"train.output_dir={tmp_path}" in command


def test_all_threads_take_tiny_numbers_for_zero(run_python):
    """Otherwise DAB-DETR's training on a CPU slows down to half its speed as its attention sharpens."""
    program = """
import checkout
from detrkit.runtime.program import subnormals_flushed
import torch
with subnormals_flushed():
    print((torch.full((1 << 22,), 1e-20) * 1e-20).count_nonzero().item())
"""
    result = run_python("-c", program, cwd=TOOLS, OMP_NUM_THREADS="2")
    assert result.stdout == "0\n", result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_torchrun_starts_what_num_gpus_does(tmp_path, machines):
    """Two processes under torchrun, on one machine or on two, come to the weights of two by --num-gpus, one writing."""
    process = start("--num-gpus", "2", f"train.output_dir={tmp_path}/launch")
    assert process.wait(timeout=120) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(machines)]
    command += ["--nproc-per-node", str(2 // machines), "--rdzv-backend", "c10d", "--rdzv-id", "test"]
    command += ["--rdzv-endpoint", f"localhost:{kills.free_port()}"]
    command += [str(TOOLS / "train_net.py"), "--config-file", CONFIG, f"train.output_dir={tmp_path}/torchrun"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = [subprocess.Popen(command, env=environment, **quiet) for _ in range(machines)]
    assert [process.wait(timeout=120) for process in started] == [0] * machines
    by_launch, by_torchrun = (load(tmp_path / name / "model_final.pth")["model"] for name in ("launch", "torchrun"))
    torch.testing.assert_close(by_torchrun, by_launch, rtol=0, atol=0)
    assert len(metrics(tmp_path / "torchrun")) == 7
