#!/usr/bin/env python3
"""`align-detr ablate` in a checkout; it is detrkit/commands/ablate.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.ablate import main

if __name__ == "__main__":
    main()
