#!/usr/bin/env python3
"""`align-detr convert` in a checkout; it is detrkit/commands/convert.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.convert import main

if __name__ == "__main__":
    main()
