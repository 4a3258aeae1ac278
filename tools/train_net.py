#!/usr/bin/env python3
"""Train or evaluate a detector, with detectron2's and detrex's command line; `align-detr train` is the same code."""

import checkout  # noqa: F401  (puts the packages on the path)

from detrkit.commands.train import train_net

if __name__ == "__main__":
    train_net()
