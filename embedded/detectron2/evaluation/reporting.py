"""Results as lines that scripts can read."""

from __future__ import annotations

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Mapping[str, float] | float]) -> None:
    """Logs each task's main metrics as comma-separated lines that begin with `copypaste:`.

    Per-class metrics (a `-` in their name, as in `AP-person`) are left out. Values have four decimals.
    """
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s", task, metrics)
            continue
        main = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(main))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in main.values()))
