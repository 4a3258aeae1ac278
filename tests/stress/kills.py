#!/usr/bin/env python
"""Kills trainings at random moments, resumes them, and compares the end with that of one that was left alone.

    python tests/stress/kills.py --kills 100 --processes 2 --output FOLDER [key=value ...]

Half of the kills wait for a checkpoint that is being written. After each one every checkpoint in the folder has to be
readable. Every other run has data workers, the uninterrupted one has none. Prints a line for each run and the counts;
exit status 1 if anything differs. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "detrkit" / "commands" / "mixed_config.py"
TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")
OF_THE_RUN = (*TIMES, "train.output_dir", "dataloader.train.num_workers", "dataloader.test.num_workers")


class Run:
    """A training by `align-detr train --resume=auto`.

    Its processes are forks of this one, as importing everything takes longer than the training.
    """

    def __init__(self, config: str, folder: Path, processes: int, overrides: list[str]):
        words = ["--config-file", config, "--resume=auto", f"train.output_dir={folder}", *overrides]
        args = train_net.parse(train_net.parser(), words)
        port = str(free_port())
        self._left = set()
        self._failed = False
        for rank in range(processes):
            if pid := os.fork():
                self._left.add(pid)
                continue
            os.setsid()
            log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if processes > 1:  # as torchrun does it
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            status = 1
            try:
                train_net.work(args)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)

    def finished(self) -> bool | None:
        """Whether it came to its end without an error; None while it runs."""
        for pid in list(self._left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._left.remove(pid)
                self._failed |= status != 0
        return None if self._left and not self._failed else not self._failed

    def kill(self) -> None:
        """SIGKILL for its processes and their data workers."""
        family = [pid for parent in self._left for pid in (parent, *children(parent))]
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for pid in self._left:
            os.waitpid(pid, 0)
        self._left = set()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def children(pid: int) -> Iterator[int]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            yield int(status.parent.name)


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
        run = Run(config, folder, processes, overrides)
        # Half the kills come at any moment of a whole run, the others with a file that is being written behind it.
        deadline = time.monotonic() + generator.uniform(0, straight_seconds)
        waits_for_file = generator.random() < 0.5
        while (finished := run.finished()) is None:
            if kills < kills_left and time.monotonic() > deadline:
                unfinished = waits_for_file and next(folder.glob("*.tmp"), None) is not None
                if unfinished or not waits_for_file:
                    run.kill()
                    kills += 1
                    writing += unfinished
                    broken += unreadable(folder)
                    break
            time.sleep(0.0005 if waits_for_file else 0.01)
        if finished is not None:
            run.kill()
            return kills, writing, broken + ([] if finished else [f"a run failed, see {folder}.log"])


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
    data = args.output / "data"
    if not data.exists():
        mixed_data.write(data)
    os.environ["MIXED_DATA"] = str(data)

    straight = args.output / "straight"
    begin = time.monotonic()
    run = Run(args.config_file, straight, args.processes, args.opts)
    while (finished := run.finished()) is None:
        time.sleep(0.01)
    if not finished:
        run.kill()
        sys.exit(f"the run without kills failed, see {straight}.log")
    seconds = time.monotonic() - begin
    print(f"uninterrupted: {seconds:.1f} s", flush=True)

    generator = random.Random(args.seed)
    kills = writing = runs = different = 0
    broken: list[str] = []
    while kills < args.kills:
        folder = args.output / f"killed_{runs:03d}"
        limit = min(args.per_run, args.kills - kills)
        begin = time.monotonic()
        opts = [*args.opts, f"dataloader.train.num_workers={runs % 2 * 2}"]
        result = run_with_kills(args.config_file, folder, args.processes, opts, seconds, limit, generator)
        if not result[0]:  # the machine is faster now
            seconds = min(seconds, time.monotonic() - begin)
        kills, writing, broken, runs = kills + result[0], writing + result[1], broken + result[2], runs + 1
        if not (folder / "model_final.pth").exists():
            different += 1
            print(f"{folder.name}: did not finish: {result[2]}", flush=True)
            break
        equal = same(state(straight), state(folder)), metrics(straight) == metrics(folder)
        different += not all(equal)
        print(f"{folder.name}: {result[0]} kills, state equal: {equal[0]}, metrics equal: {equal[1]}", flush=True)
    print(
        f"{kills} kills ({writing} while a checkpoint was being written) in {runs} runs, {args.processes} process(es): "
        f"{different} ended differently, {len(broken)} unreadable files or failures {broken[:3]}"
    )
    sys.exit(bool(different or broken))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    sys.path[:0] = [str(HERE.parent / "detrkit" / "commands"), str(HERE.parents[1] / "tools")]

import checkout  # noqa: E402, F401, I001  (puts the packages on the path)
from detrkit.commands import train as train_net  # noqa: E402

import mixed_data  # noqa: E402
import torch  # noqa: E402

# So that the forks need not import them: the writer of metrics, and what PyTorch's optimizers import.
import torch._dynamo  # noqa: E402, F401
import torch.utils.tensorboard  # noqa: E402, F401

if __name__ == "__main__":
    main()
