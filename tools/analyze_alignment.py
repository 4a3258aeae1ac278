#!/usr/bin/env python3
"""`align-detr analyze` in a checkout; it is detrkit/commands/analyze.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.analyze import main

if __name__ == "__main__":
    main()
