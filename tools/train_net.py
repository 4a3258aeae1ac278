#!/usr/bin/env python3
"""`align-detr train` in a checkout; it is detrkit/commands/train.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.train import main

if __name__ == "__main__":
    main()
