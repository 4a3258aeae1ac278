#!/usr/bin/env python3
"""`align-detr train` in a checkout; it is align_detr/commands/train.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from align_detr.commands.train import main

if __name__ == "__main__":
    main()
