"""Server of Python programs that start in a tenth of a second: forks of a process that has imported the libraries.

Importing PyTorch takes seconds, and a test of a command line starts several programs. The server imports libraries only
and nothing of this repository, so each program still imports it, reads the environment and registers data on its own.
`program_runner` in conftest.py is its client.

    python tests/program_server.py SOCKET
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import socket
import sys
from contextlib import suppress
from typing import Any

# PyTorch's optimizers import torch._dynamo when the first one is built.
LIBRARIES = ("torch", "torch._dynamo", "torch.utils.tensorboard", "omegaconf", "hydra.utils", "scipy.optimize")
LIBRARIES += ("scipy.sparse", "scipy.stats", "pycocotools.cocoeval", "fvcore.common.checkpoint", "safetensors.torch")


def serve(path: str) -> dict[str, Any]:
    """Answer requests at the socket `path`, and return each request in a new process, which is to run the program.

    A client connects and sends one line of JSON, the arguments of `run`. It receives two lines: the number of the
    process, and its exit status once it has ended, negative for a signal.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    listener.settimeout(10)
    print("ready", flush=True)
    client = os.getppid()
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            if os.getppid() != client:  # it was killed
                sys.exit()
            continue
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not os.fork():
            break
        connection.close()
    listener.close()
    request = json.loads(connection.makefile().readline())
    if pid := os.fork():
        connection.sendall(f"{pid}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(f"{status}\n".encode())
        os._exit(0)
    connection.close()
    return request


def run(words: list[str], folder: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    """Run `python WORDS` in this process: `-m MODULE …`, `-c CODE …` or `FILE …`.

    Args:
        folder: the working directory.
        environment: all variables; of those that Python and PyTorch read when they start, PYTHONPATH and
            OMP_NUM_THREADS count.
        stdout, stderr: files for the output.
    """
    import numpy
    import torch

    os.setsid()
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, stdout, os.O_WRONLY), (2, stderr, os.O_WRONLY)):
        os.dup2(os.open(path, flags), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", 1)))
    numpy.random.seed()  # as in a process of its own
    kind = words[0] if words[0] in ("-m", "-c") else ""
    program, *arguments = words[1:] if kind else words
    first = {"-m": os.getcwd(), "-c": ""}.get(kind, os.path.dirname(os.path.abspath(program)))
    sys.path[:1] = [first, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [kind or program, *arguments]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    run(**serve(sys.argv[1]))
