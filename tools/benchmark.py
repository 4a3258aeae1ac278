#!/usr/bin/env python3
"""`align-detr benchmark` in a checkout; it is detrkit/commands/benchmark.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.benchmark import main

if __name__ == "__main__":
    main()
