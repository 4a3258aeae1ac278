#!/usr/bin/env python3
"""`align-detr analyze` in a checkout; it is align_detr/commands/analyze.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from align_detr.commands.analyze import main

if __name__ == "__main__":
    main()
