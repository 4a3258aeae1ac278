"""The ablation: which runs it makes of a grid, how it goes on after a stop, and what it calls noise."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from detrkit.commands import ablate
from detrkit.config.load import load_config
from detrkit.experiments import ablation, runner
from detrkit.experiments import jobs as training_jobs

ROOT = Path(__file__).resolve().parents[3]
TOY = Path(__file__).with_name("toy_config.py")
TRAIN = runner.TRAIN

# In place of `align-detr train`. AP is the seed, plus 10 for k=3; gamma=9 fails, and seed 7 waits for Ctrl-C once.
TRAINER = """
import json, os, re, signal, sys, time
from pathlib import Path

given = dict(word.split("=", 1) for word in sys.argv[1:] if re.match(r"[\\w.]+=", word))
folder = Path(given["train.output_dir"].strip("'"))
print("ppid", os.getppid(), flush=True)
calls = folder / "calls.txt"
calls.open("a").write(" ".join(sys.argv[1:]) + "\\n")
if given.get("model.criterion.gamma") == "9":
    sys.exit("a line\\nerror: the loss is not finite")
with (folder / "metrics.json").open("a") as file:
    file.write(json.dumps({"iteration": 19, "total_loss": 1}) + "\\n")
    file.flush()
    if given["train.seed"] == "7" and len(calls.read_text().splitlines()) == 1:
        try:
            time.sleep(20)
        except KeyboardInterrupt:
            sys.exit(130)
    ap = 30 + int(given["train.seed"]) + 10 * (given.get("model.criterion.k") == "3")
    file.write(json.dumps({"iteration": 40, "bbox/AP": ap}) + "\\n")
"""


@pytest.fixture
def tool(monkeypatch, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    trainer = tmp_path / "trainer.py"
    trainer.write_text(TRAINER)
    monkeypatch.setattr(runner, "TRAIN", [sys.executable, str(trainer)])
    yield ablate
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def run(tool, tmp_path):
    """`run("--grid", "k=2,3")` runs the tool and returns its exit status; output goes to tmp_path / "out"."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            tool.main(["train.max_iter=40", "--output", str(tmp_path / "out"), *map(str, arguments)])
        return stop.value.code

    return run


def calls(folder):
    return (folder / "calls.txt").read_text().splitlines()


def test_one_change_at_a_time_and_all_combinations():
    """The config's own values are the default, once; with --full every combination is there exactly once."""
    cfg = load_config("align_detr_tiny", [])
    grid = ablation.parse_grid(["alpha=0,0.250", "k=1,2,3", "optimizer.lr=1e-3"])
    names = [s.name for s in ablation.make_settings(cfg, "align_detr_tiny", grid, False, "dino_tiny")]
    assert names == ["baseline", "default", "alpha=0", "k=1", "k=3", "optimizer.lr=1e-3"]
    del grid["optimizer.lr"]
    names = [s.name for s in ablation.make_settings(cfg, "align_detr_tiny", grid, True, None)]
    assert sorted(names) == sorted(["default", "k=1", "k=3", "alpha=0", "alpha=0 k=1", "alpha=0 k=3"])


def test_a_chain_keeps_what_it_changed():
    """One part after the other, in the given order; no link repeats the one before."""
    cfg = load_config("align_detr_tiny", [])
    chain = ablation.parse_chain(["k=1", "optimizer.lr=1e-3", "alpha=0"])
    links = ablation.make_links(cfg, "align_detr_tiny", chain, "dino_tiny")
    assert [s.name for s in links] == [
        "baseline", "default", "k=1", "k=1 optimizer.lr=1e-3", "k=1 optimizer.lr=1e-3 alpha=0",
    ]
    assert dict(links[-1].changes) == {"model.criterion.k": "1", "optimizer.lr": "1e-3", "model.criterion.alpha": "0"}


def test_defaults_that_the_config_does_not_spell_out():
    """They are those of the constructor."""
    cfg = load_config(str(TOY), [])
    assert ablation.default_of(cfg, "model.scale") == 1.0
    assert ablation.default_of(cfg, "model.width") == 4


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--grid", "k"], "--grid takes name=value,value,..., not k"),
        (["--grid", "k=1,,2"], "not k=1,,2"),
        (["--grid", "k=1", "model.criterion.k=2"], "model.criterion.k twice"),
        (["--grid", "alfa=1"], "did you mean model.criterion.alpha?"),
        (["--chain", "k=1,3"], "--chain takes one value of each, not model.criterion.k=1,3"),
        (["--chain", "k=1", "alpha=0.25"], "alpha=0.25 is what the config has already"),
        (["--chain", "k=1", "--full"], "--chain is instead of --grid and --full"),
        (["--seeds", "1", "1"], "--seeds"),
        (["--jobs", "0"], "--jobs"),
        (["--baseline", "nowhere.py"], "no such config: nowhere.py"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_trained(run, tmp_path, capsys, arguments, said):
    assert run(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
    assert not (tmp_path / "out").exists()


def test_runs_once_reports_and_refuses_to_mix(run, tmp_path, capsys):
    """A second call trains nothing that is finished; another config in the same folder is an error, not a mixture."""
    arguments = ["--grid", "k=3", "--seeds", "0", "1", "model.criterion.tau=2"]
    assert run("model.criterion.tau=2", *arguments[:-1]) == 0
    out = tmp_path / "out"
    report = json.loads((out / "results.json").read_text())
    means = {row["name"]: row["metrics"]["bbox/AP"]["mean"] for row in report["settings"]}
    assert means == {"baseline": 30.5, "default": 30.5, "k=3": 40.5}
    assert report["pooled_deviation"] == pytest.approx(0.5**0.5)
    verdicts = {row["name"]: row["difference"] and row["difference"]["within_noise"] for row in report["settings"]}
    assert verdicts == {"baseline": True, "default": None, "k=3": False}
    (call,) = calls(out / "k-3/seed_1")
    assert {"--resume=auto", "model.criterion.k=3", "model.criterion.tau=2", "train.seed=1"} <= set(call.split())
    assert "tau" not in calls(out / "baseline/seed_0")[0], "plain DINO's criterion has no such option"
    assert (out / "ablation.png").stat().st_size > 10_000
    table = (out / "table.md").read_text()
    assert "k = 3" in table and "40.50 ± 0.71" in table and "+0.00 ± " in table and "within noise" in table

    capsys.readouterr()
    assert run("model.criterion.tau=2", *arguments[:-1]) == 0
    assert "6 of 6 runs are finished already" in capsys.readouterr().out
    assert len(calls(out / "k-3/seed_1")) == 1
    assert run("model.criterion.tau=3", *arguments[:-1]) == 1
    assert "holds a run of another config" in capsys.readouterr().err


def test_a_chain_is_reported_link_by_link(run, tmp_path):
    """Each link has the changes of those before it, in its training, in the table and in the plot."""
    assert run("--no-baseline", "--chain", "k=3", "tau=2", "--seeds", "0", "1") == 0
    table = (tmp_path / "out/table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:5]] == ["default (align_detr_tiny)", "k = 3", "k = 3, τ = 2"]
    (call,) = calls(tmp_path / "out/k-3_tau-2/seed_1")
    assert "model.criterion.k=3" in call and "model.criterion.tau=2" in call
    assert (tmp_path / "out/ablation.png").is_file()


def test_a_failed_run_is_named_and_tried_again(run, tmp_path, capsys):
    """The others count; n says how many, and the exit status that something is missing."""
    arguments = ["--grid", "gamma=2,9", "--seeds", 3, "--no-baseline", "--jobs", 1]
    for times in (1, 2):
        assert run(*arguments) == 1
        captured = capsys.readouterr()
        assert "gamma=9, seed 3: failed: the loss is not finite" in captured.err
        assert len(calls(tmp_path / "out/gamma-9/seed_3")) == times
    report = json.loads((tmp_path / "out/results.json").read_text())
    assert [(row["name"], row["n"]) for row in report["settings"]] == [("default", 1), ("gamma=9", 0)]
    assert "nothing tells a difference from noise" in captured.out


def test_gives_up_where_nothing_starts(run, tmp_path, capsys):
    """What is wrong with the first run, such as data that are not there, is wrong with all of them."""
    assert run("model.criterion.gamma=9", "--grid", "k=1,3", "--seeds", 0, 1, "--no-baseline", "--jobs", 1) == 1
    assert capsys.readouterr().err.count("not run") == 5
    assert not (tmp_path / "out/k-1").exists()


def test_interrupted_trainings_are_told_and_resume(tmp_path):
    """Ctrl-C reaches the trainings, which save checkpoints; the same command goes on with them."""
    (tmp_path / "trainer.py").write_text(TRAINER)
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import checkout\n"
        "from detrkit.commands import ablate\nfrom detrkit.experiments import runner\n"
        f"runner.TRAIN = {[sys.executable, str(tmp_path / 'trainer.py')]!r}\nablate.main()\n"
    )
    command = [sys.executable, str(script), "--grid", "k=2", "--seeds", "7", "--no-baseline"]
    command += ["--output", str(tmp_path / "out")]
    folder = tmp_path / "out/default/seed_7"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (folder / "metrics.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0 and not (folder / "run_result.json").exists()
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    assert len(calls(folder)) == 2
    assert json.loads((folder / "run_result.json").read_text())["bbox/AP"] == 37


def test_real_trainings(run, monkeypatch, tmp_path):
    """`align-detr train` takes what it is given, and its metrics are found."""
    monkeypatch.setattr(runner, "TRAIN", TRAIN)
    out = tmp_path / "it's = out"
    arguments = ["--config-file", TOY, "--no-baseline", "--grid", "model.scale=1,3", "--seeds", 5, "--max-iter", 4]
    assert run(*arguments, "--output", out) == 0
    report = json.loads((out / "results.json").read_text())
    default, scaled = (row["metrics"]["bbox/AP"]["mean"] for row in report["settings"])
    assert default != scaled
    left = {path.name for path in (out / "default/seed_5").glob("*.pth")}
    assert left == {"model_final.pth", "model_best.pth"}


def test_each_training_has_a_gpu_of_its_own(tool, monkeypatch, tmp_path):
    """Three trainings on two GPUs, two at a time, by the numbers that the user left to this process."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    say = [sys.executable, "-c", "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(1)"]
    folders = [tmp_path / name for name in "abc"]
    jobs = [training_jobs.Job([say], str(folder), str(tmp_path), dict(os.environ), True) for folder in folders]
    with runner.Runner(2, 2).client() as client:
        done = [client.submit(training_jobs.run_job, job, pure=False, resources={"GPU": 1}) for job in jobs]
        assert [future.result()[0] for future in done] == [0, 0, 0]
    first, second, third = ((folder / "console.txt").read_text().strip() for folder in folders)
    assert {first, second} == {"3", "5"} and third in ("3", "5")


@pytest.mark.slow
def test_two_nodes_of_which_one_dies(run, tmp_path, capfd):
    """A cluster's workers share the runs out; the run of a node that dies goes on, from its checkpoint, on the other,
    and is not run twice at a time; without a cluster, one line says so."""
    assert run("--grid", "k=2", "--seeds", 7, "--no-baseline", "--cluster", "tcp://127.0.0.1:1") == 1
    assert "error: no Dask scheduler answers at tcp://127.0.0.1:1" in capfd.readouterr().err

    def dask(role, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.dask_{role}", *arguments, "--no-dashboard"]
        return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)

    environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects")}
    file = tmp_path / "scheduler.json"
    nodes = [dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))]
    try:
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        nodes += [dask("worker", address, "--nthreads", "1", "--no-nanny", "--name", name) for name in ("n1", "n2")]
        folder = tmp_path / "out/default/seed_7"

        def kill_a_node():
            while not (folder / "metrics.json").exists():
                time.sleep(0.05)
            line = next(line for line in (folder / "console.txt").read_text().splitlines() if line.startswith("ppid "))
            os.kill(int(line.split()[1]), signal.SIGKILL)

        killer = Thread(target=kill_a_node)
        killer.start()
        assert run("--grid", "k=2,3", "--seeds", 7, 8, "--no-baseline", "--cluster", address) == 0
        killer.join()
        assert len(calls(folder)) == 2
        assert len(calls(tmp_path / "out/k-3/seed_8")) == 1
        assert nodes[1].poll() != nodes[2].poll()  # one of them has an exit status
    finally:
        for node in nodes:
            node.kill()
            node.wait()
