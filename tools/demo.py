#!/usr/bin/env python3
"""`align-detr demo` in a checkout; it is detrkit/commands/demo.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.demo import main

if __name__ == "__main__":
    main()
