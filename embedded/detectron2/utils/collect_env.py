"""Description of hardware and software for the log."""

from __future__ import annotations

import os
import platform

import torch


def collect_env_info() -> str:
    """Operating system, processors, and the versions of Python, PyTorch, CUDA and cuDNN, in one line."""
    parts = [
        f"Python {platform.python_version()}",
        f"PyTorch {torch.__version__}",
        f"{platform.system()} {platform.machine()} with {os.cpu_count()} CPU cores ({torch.get_num_threads()} used)",
    ]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        gpus = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        parts.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}: {gpus}")
    return "; ".join(parts)
