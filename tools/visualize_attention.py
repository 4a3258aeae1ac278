#!/usr/bin/env python3
"""`align-detr visualize-attention` in a checkout; it is detrkit/commands/visualize_attention.py."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.visualize_attention import main

if __name__ == "__main__":
    main()
