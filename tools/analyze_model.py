#!/usr/bin/env python3
"""`align-detr model` in a checkout; it is detrkit/commands/model.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.model import main

if __name__ == "__main__":
    main()
