"""End a distributed training when one of its processes has died or hangs, and say which one.

Otherwise the other processes wait for it in a collective operation for half an hour or more. Each process sends its
state to the others every second, in a datagram.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from detectron2.utils import comm

SECONDS = 1.0  # between two datagrams
SILENT = 12.0  # seconds without a datagram after which a process counts as dead
LATER = 1.5  # seconds after which other processes may report too
PATIENCE = 10  # a step may take this many times the longest step so far
COLLECTIVES = ("distributed_c10d.py",)  # files in which a process waits for the others
ORDER = ("", "reading data", "the forward pass", "the backward pass", "the update")


@dataclass
class _Seen:
    """Last state of another process, and when it arrived."""

    heard: float = field(default_factory=time.monotonic)
    news: dict = field(default_factory=dict)


class Watchdog:
    """Watches the other processes inside `watching()`; does nothing in a run of one process.

    A process counts as dead after 12 seconds without a datagram. It counts as hanging if one part of a training step
    takes longer than `hang_seconds` and ten times the longest step so far, while another process is further or waits in
    a collective. The first step, evaluation and checkpoints may take any time.

    Args:
        hang_seconds: 0 switches the detection of hanging processes off.
    """

    def __init__(self, hang_seconds: float):
        self._hang_seconds = hang_seconds
        self._rank, self._count = comm.get_rank(), comm.get_world_size()
        self._iteration, self._doing, self._since = 0, "", time.monotonic()
        self._step_began, self._longest = time.monotonic(), 0.0
        self._main_thread = threading.main_thread().ident
        self._over = threading.Event()
        self._seen: dict[int, _Seen] = {}

    def report_phase(self, doing: str) -> None:
        """Note the part of a step that the main thread begins; "" after the step."""
        now = time.monotonic()
        if doing == ORDER[1]:
            self._step_began = now
        elif not doing:
            self._iteration += 1
            if self._iteration > 1:
                self._longest = max(self._longest, now - self._step_began)
        self._doing, self._since = doing, now

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch inside the block. All processes enter it.

        Raises:
            ConnectionError: another process has failed, for a reason that is not known here.
        """
        if self._count == 1:
            yield
            return
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        self._socket.settimeout(SECONDS / 4)
        gathered = comm.all_gather((_own_address(), self._socket.getsockname()[1], os.getpid(), secrets.token_hex(8)))
        self._token = gathered[0][3]
        self._peers = {rank: (host, port) for rank, (host, port, *_) in enumerate(gathered) if rank != self._rank}
        self._pids = {rank: pid for rank, (_, _, pid, _) in enumerate(gathered)}
        self._host = gathered[self._rank][0]
        thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        thread.start()
        try:
            yield
        except RuntimeError as error:
            if not _is_of_a_collective(error):
                self._leave(thread, "failed")
                raise
            # Soon the watchdog knows which process has failed, and ends this one.
            time.sleep(SILENT + 4 * SECONDS)
            self._leave(thread, "failed")
            line = " ".join(str(error).split())
            raise ConnectionError(f"another process of the run has failed: {line}") from error
        except BaseException:
            self._leave(thread, "failed")
            raise
        self._leave(thread, "done")

    def _leave(self, thread: threading.Thread, how: str) -> None:
        self._over.set()
        thread.join()
        for _ in range(3):  # datagrams may be lost
            self._send({"left": how})
        self._socket.close()

    def _watch(self) -> None:
        last = 0.0
        while not self._over.is_set():
            now = time.monotonic()
            if now - last >= SECONDS:
                late = last and now - last > SILENT / 2
                last = now
                self._send(self._news(now))
                if late:  # this process or the whole machine was paused
                    self._seen = {rank: _Seen(news=seen.news) for rank, seen in self._seen.items()}
                elif culprit := self._culprit(now):
                    self._end(*culprit)
            self._receive()

    def _send(self, news: dict) -> None:
        packet = json.dumps({"token": self._token, "rank": self._rank, **news}).encode()
        for address in self._peers.values():
            with suppress(OSError):  # as datagrams may be lost anyway
                self._socket.sendto(packet, address)

    def _receive(self) -> None:
        try:
            news = json.loads(self._socket.recv(4096))
        except (OSError, ValueError):
            return
        if isinstance(news, dict) and news.get("token") == self._token and news.get("rank") in self._peers:
            seen = self._seen.setdefault(news["rank"], _Seen())
            seen.heard = time.monotonic()
            if seen.news.get("left") is None:
                seen.news = news

    def _news(self, now: float) -> dict:
        frame = sys._current_frames().get(self._main_thread)
        limit = max(self._hang_seconds, PATIENCE * self._longest)
        return {
            "iteration": self._iteration,
            "doing": self._doing,
            "seconds": now - self._since,
            "stuck": bool(self._hang_seconds and self._doing and self._longest and now - self._since > limit),
            "waits": _is_waiting(frame),
            "where": _where(frame),
        }

    def _culprit(self, now: float) -> tuple[int, str, bool] | None:
        """The process that has failed, a message, and whether it has stopped sending; None if there is none."""
        for rank, seen in sorted(self._seen.items()):
            left = seen.news.get("left")
            if left == "failed" and now - seen.heard > SILENT:  # it has reported the reason itself
                return rank, "", False
            if left is None and now - seen.heard > SILENT:
                doing = seen.news["doing"] or "the work between two steps"
                at = f"in {doing} of iteration {seen.news['iteration']}, {seen.news['where']}"
                return rank, f"process {rank} (pid {self._pids[rank]}) is dead or stopped: last seen {at}", True
        states = {rank: seen.news for rank, seen in self._seen.items() if "doing" in seen.news}
        states[self._rank] = self._news(now)
        if len(states) < self._count:
            return None
        progress = {rank: (news["iteration"], ORDER.index(news["doing"])) for rank, news in states.items()}
        slowest = [rank for rank in states if progress[rank] == min(progress.values())]
        if len(slowest) == len(states):
            slowest = [rank for rank in states if not states[rank]["waits"]]
        if len(slowest) == len(states) or not all(news["stuck"] or not news["doing"] for news in states.values()):
            return None
        for rank in slowest:
            news = states[rank]
            if news["stuck"]:
                at = f"in {news['doing']} of iteration {news['iteration']}, {news['where']}"
                return rank, f"process {rank} (pid {self._pids[rank]}) hangs: {news['seconds']:.0f} s {at}", False
        return None

    def _end(self, culprit: int, message: str, silent: bool) -> None:
        """End this process. The one with the lowest rank reports for all."""
        speaker = min(rank for rank in range(self._count) if rank != culprit)
        if self._rank != speaker:
            time.sleep(LATER)
        if message and self._rank == speaker:
            advice = "the other processes end; --resume continues from the last checkpoint"
            print(f"error: {message}; {advice}", file=sys.stderr, flush=True)
        if silent and self._rank == speaker and self._peers[culprit][0] == self._host:
            with suppress(OSError):  # a stopped process does not react to SIGTERM
                os.kill(self._pids[culprit], signal.SIGKILL)
        os._exit(1)


def _own_address() -> str:
    """Address of the network interface that leads to the other machines of the run."""
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((master, 9))
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]


def _is_waiting(frame: FrameType | None) -> bool:
    return any(entry.filename.endswith(COLLECTIVES) for entry in traceback.extract_stack(frame)) if frame else False


def _where(frame: FrameType | None) -> str:
    if frame is None:
        return "at an unknown place"
    return f"at {os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} ({frame.f_code.co_name})"


def _is_of_a_collective(error: RuntimeError) -> bool:
    text = str(error).lower()
    return type(error).__name__.startswith("Dist") or any(word in text for word in ("gloo", "nccl", "connection"))
