"""Imported by Python's fork server: what the data workers need, and a server that outlives signals to all processes.

The server starts workers for as long as the training lives, and ends with it. `data_workers.preload_workers` names this
module.
"""

import signal

import detrkit.training.stream  # noqa: F401

signal.signal(signal.SIGTERM, signal.SIG_IGN)
