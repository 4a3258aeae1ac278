"""Launch the processes of a distributed run."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = timedelta(minutes=30)
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Call `main_func(*args)` in every process of the run, with the process group set up.

    Under torchrun, or any launcher that sets its environment variables, this process is one of them. Otherwise
    `num_gpus_per_machine` processes are started here, unless there is to be just one in the whole run, which is this
    one. Each has a GPU of its own, or, on a machine without any, a share of the CPU cores. Tensors on GPUs travel by
    NCCL, all others by gloo.

    Args:
        num_machines, machine_rank: how many machines take part, each with a call of its own, and which this one is.
        dist_url: where the processes meet, such as `tcp://host:port`; "auto" finds a port when there is one machine.
        timeout: how long a process waits for the others in a collective.

    Raises:
        ValueError: fewer GPUs than processes, a machine rank out of range, or "auto" with several machines.
    """
    if all(name in os.environ for name in _TORCHRUN):
        os.environ.setdefault("LOCAL_RANK", "0")
        _run_in_group(main_func, args, init_method="env://", timeout=timeout)
        return

    world_size = num_machines * num_gpus_per_machine
    if not 0 <= machine_rank < num_machines or num_gpus_per_machine < 1:
        raise ValueError(
            f"--num-gpus {num_gpus_per_machine} --num-machines {num_machines} --machine-rank {machine_rank}: "
            "at least one process a machine, and ranks from 0 to one below the number of machines"
        )
    if world_size == 1:
        main_func(*args)
        return

    gpus = torch.cuda.device_count()
    if gpus == 0:
        logger.warning("This machine has no GPU: %d processes share its CPU, over gloo", num_gpus_per_machine)
    elif gpus < num_gpus_per_machine:
        raise ValueError(f"--num-gpus {num_gpus_per_machine}, but this machine has {gpus}")
    if dist_url in (None, "auto"):
        if num_machines > 1:
            raise ValueError("several machines need a place to meet: give each the same --dist-url tcp://HOST:PORT")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    # When one process fails the others are ended, which torch reports for each; the one that failed has said more.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    first_rank = machine_rank * num_gpus_per_machine
    group = dict(init_method=dist_url, world_size=world_size, timeout=timeout)
    placing = (first_rank, num_gpus_per_machine, mp.get_start_method())
    mp.spawn(_spawned, nprocs=num_gpus_per_machine, args=(*placing, group, main_func, args))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _spawned(
    local_rank: int,
    first_rank: int,
    processes: int,
    start_method: str,
    group: dict[str, Any],
    main_func: Callable[..., Any],
    args: tuple,
) -> None:
    # A spawned process would spawn in its turn, and data loaders take many seconds to start workers that way.
    mp.set_start_method(start_method, force=True)
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    os.environ["LOCAL_RANK"] = str(local_rank)
    _run_in_group(main_func, args, rank=first_rank + local_rank, **group)


def _run_in_group(main_func: Callable[..., Any], args: tuple, **group: Any) -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, **group)
    dist.barrier()
    main_func(*args)
    # Only after success: a group whose other members are stuck would keep this process from ending.
    dist.destroy_process_group()
