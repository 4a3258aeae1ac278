#!/usr/bin/env python3
"""`align-detr compare` in a checkout; it is detrkit/commands/compare.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.compare import main

if __name__ == "__main__":
    main()
