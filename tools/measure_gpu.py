#!/usr/bin/env python3
"""`align-detr gpu-report` in a checkout; it is detrkit/commands/gpu_report.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.gpu_report import main

if __name__ == "__main__":
    main()
