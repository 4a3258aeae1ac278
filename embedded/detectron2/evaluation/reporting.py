"""Results as log lines for scripts."""

from __future__ import annotations

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Mapping[str, float] | float]) -> None:
    """Log the main metrics of each task as comma-separated lines that begin with `copypaste:`.

    Per-class metrics (with `-` in their name, as in `AP-person`) are omitted. Values have four decimals.
    """
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s", task, metrics)
            continue
        main = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(main))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in main.values()))
