"""The commands: a module each, with a `main(argv=None)`; and what they share."""

import os

# Read when torch is imported. By default OpenMP's threads spin for milliseconds while they wait, and if one of them has
# lost its core to a data loader's worker or to a neighbour, a training step takes ten times as long. This is
# microseconds, and as fast on an idle machine.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
