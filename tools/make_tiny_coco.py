#!/usr/bin/env python3
"""`align-detr make-data` in a checkout; it is detrkit/commands/make_data.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.make_data import main

if __name__ == "__main__":
    main()
