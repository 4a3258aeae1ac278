"""Random seeds."""

from __future__ import annotations

import logging
import os
import random

import numpy as np
import torch

logger = logging.getLogger(__name__)


def seed_all_rng(seed: int | None = None) -> None:
    """Seed Python's, NumPy's and PyTorch's generators (every device's), with fresh entropy if `seed` is None."""
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
        logger.info("Using the random seed %d", seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
