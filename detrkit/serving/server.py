"""Run the web application until a signal ends it."""

from __future__ import annotations

import copy
import errno
import signal
import socket

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from detrkit.inference import Detector

from .app import Options, create_app

GRACE = 60  # seconds for the requests in progress, once a signal has come


def open_socket(host: str, port: int) -> socket.socket:
    """Bind a socket; port 0 means any free one.

    Raises:
        OSError: the address is in use or not of this machine; the message says what to do.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise OSError(f"port {port} of {host} is in use: choose another --port, or 0 for any free one") from error
        raise OSError(f"cannot listen on {host}, port {port}: {getattr(error, 'strerror', None) or error}") from error


def address(listening: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(detector: Detector, listening: socket.socket, options: Options) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish those in progress. A second signal ends at once."""
    config = uvicorn.Config(
        create_app(detector, options),
        log_config=_logging(),
        log_level=None,
        lifespan="on",
        timeout_graceful_shutdown=GRACE,
    )
    # uvicorn raises the signal again once it has stopped; the end is orderly, so nothing more is to happen.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listening])


def _logging() -> dict:
    """uvicorn's log: requests and warnings."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"]["uvicorn.error"]["level"] = "WARNING"
    return config
