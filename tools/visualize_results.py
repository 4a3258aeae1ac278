#!/usr/bin/env python3
"""`align-detr visualize-results` in a checkout; it is detrkit/commands/visualize_results.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.visualize_results import main

if __name__ == "__main__":
    main()
