#!/usr/bin/env python
"""Kills trainings at random moments, resumes them, and compares the end with that of one that was left alone.

    python tests/tools/kills.py --kills 100 --processes 2 --output FOLDER [--config-file CONFIG] [key=value ...]

Half of the kills wait for a checkpoint that is being written. After each one every checkpoint in the folder has to be
readable. Prints a line for each run and the counts; exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

TOOL = Path(__file__).resolve().parents[2] / "tools" / "train_net.py"
CONFIG = Path(__file__).with_name("mixed_config.py")
TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")
OF_THE_RUN = (*TIMES, "train.output_dir")


def start(config: str, folder: Path, processes: int, overrides: list[str]) -> subprocess.Popen:
    """A training in a process group of its own, which goes on where there is something to go on from."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, str(TOOL), "--config-file", config, "--resume", f"train.output_dir={folder}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = open(f"{folder}.log", "ab")
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL for it and all that it started; torchrun's workers are in groups of their own."""
    family = descendants(process.pid)
    for pid in (process.pid, *family):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def descendants(pid: int) -> list[int]:
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def metrics(folder: Path) -> list[dict]:
    """The rows of metrics.json but for times; every line has to be whole."""
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def state(folder: Path) -> dict:
    return torch.load(folder / "model_final.pth", map_location="cpu", weights_only=True)


def same(left, right) -> bool:
    """Whether two states agree to the last bit, times and the folder's name aside."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left if k not in OF_THE_RUN)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.equal(right) or bool(left.isnan().any() and right.isnan().any())
    return left == right or left != left and right != right


def unreadable(folder: Path) -> list[str]:
    found = []
    for path in folder.glob("*.pth"):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            found.append(f"{path.name}: {error}")
    return found


def run_with_kills(
    config: str,
    folder: Path,
    processes: int,
    overrides: list[str],
    straight_seconds: float,
    kills_left: int,
    generator: random.Random,
) -> tuple[int, int, list[str]]:
    """Returns the number of kills, of those while a checkpoint was written, and what was unreadable."""
    kills = writing = 0
    broken: list[str] = []
    while True:
        process = start(config, folder, processes, overrides)
        # Half the kills come with any moment of a whole run alike, the others with a file that is being written.
        deadline = time.monotonic() + generator.uniform(0, straight_seconds)
        wait_for_file = generator.random() < 0.5
        while process.poll() is None and kills < kills_left:
            unfinished = next(folder.glob("*.tmp"), None) if wait_for_file and time.monotonic() > deadline else None
            if unfinished or not wait_for_file and time.monotonic() > deadline:
                kill(process)
                kills += 1
                writing += unfinished is not None
                broken += unreadable(folder)
                break
            time.sleep(0.0005 if wait_for_file else 0.01)
        else:
            if process.wait() == 0:
                return kills, writing, broken
            broken.append(f"exit status {process.returncode}, see {folder}.log")
            return kills, writing, broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config-file", default=str(CONFIG))
    parser.add_argument("--kills", type=int, default=100, help="in all (default: 100)")
    parser.add_argument("--per-run", type=int, default=10, help="at most (default: 10)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("opts", nargs="*", metavar="key=value")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if "MIXED_DATA" not in os.environ:
        sys.path[:0] = [str(TOOL.parents[1] / "projects"), str(CONFIG.parent)]
        import mixed_data

        import align_detr  # noqa: F401

        os.environ["MIXED_DATA"] = str(args.output / "data")
        if not (args.output / "data").exists():
            mixed_data.write(args.output / "data")

    straight = args.output / "straight"
    begin = time.monotonic()
    if start(args.config_file, straight, args.processes, args.opts).wait() != 0:
        sys.exit(f"the run without kills failed, see {straight}.log")
    seconds = time.monotonic() - begin
    print(f"uninterrupted: {seconds:.1f} s", flush=True)

    generator = random.Random(args.seed)
    kills = writing = runs = different = 0
    broken: list[str] = []
    while kills < args.kills:
        folder = args.output / f"killed_{runs:03d}"
        limit = min(args.per_run, args.kills - kills)
        result = run_with_kills(args.config_file, folder, args.processes, args.opts, seconds, limit, generator)
        kills, writing, broken, runs = kills + result[0], writing + result[1], broken + result[2], runs + 1
        if not (folder / "model_final.pth").exists():
            different += 1
            print(f"{folder.name}: did not finish: {result[2]}", flush=True)
            continue
        equal = same(state(straight), state(folder)), metrics(straight) == metrics(folder)
        different += not all(equal)
        print(f"{folder.name}: {result[0]} kills, state equal: {equal[0]}, metrics equal: {equal[1]}", flush=True)
    print(
        f"{kills} kills ({writing} while a checkpoint was being written) in {runs} runs, {args.processes} process(es): "
        f"{different} ended differently, {len(broken)} unreadable files or failures {broken[:3]}"
    )
    sys.exit(bool(different or broken))


if __name__ == "__main__":
    main()
