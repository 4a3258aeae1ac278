#!/usr/bin/env python3
"""`align-detr export` in a checkout; it is detrkit/commands/export.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.export import main

if __name__ == "__main__":
    main()
