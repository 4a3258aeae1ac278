#!/usr/bin/env python3
"""`align-detr export-weights` in a checkout; it is detrkit/commands/export_weights.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.export_weights import main

if __name__ == "__main__":
    main()
