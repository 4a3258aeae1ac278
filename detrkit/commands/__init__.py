"""The commands: a module each, with a `main(argv=None)`; and what they share."""

import os
import sys

# Read when torch is imported. By default OpenMP's threads spin for milliseconds while they wait, and if one of them has
# lost its core to a data loader's worker or to a neighbour, a training step takes ten times as long. This is
# microseconds, and as fast on an idle machine.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def program() -> list[str]:
    """The words that started this program: `align-detr train`, or `python` and a file."""
    name = sys.argv[0]
    return name.split() if name.startswith("align-detr ") else ["python", name]
