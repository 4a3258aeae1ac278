"""`align-detr COMMAND ...`, also as `python -m align_detr COMMAND ...`.

A command's module is imported when it is called, so that help and completion need not wait for PyTorch.
"""

import os
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

from align_detr import __version__


class Command(NamedTuple):
    """What the word behind `align-detr` stands for.

    Attributes:
        summary: for the list of commands.
        takes_config: whether a first word that is no option is the config.
        module: of `detrkit.commands`; by default of the command's name.
        options: given in front of those of the command line.
    """

    summary: str
    takes_config: bool = False
    module: str = ""
    options: tuple[str, ...] = ()


COMMANDS = {
    "train": Command("train a detector", True),
    "eval": Command("evaluate a checkpoint", True, "train", ("--eval-only",)),
    "demo": Command("detect objects in images, and draw them", True),
    "configs": Command("list the configs, which every command takes by name or by path"),
    "analyze": Command("measure how well a detector's scores agree with its boxes", True),
    "model": Command("count a detector's parameters, multiply-adds and activations", True),
    "benchmark": Command("time criterion, attention, training step, inference and data loading", True),
    "gpu-report": Command("measure on a GPU what only a GPU can tell, and write it as one page", True, "gpu_report"),
    "ablate": Command("train with a grid of settings, several seeds each", True),
    "compare": Command("train detectors with Align-DETR's supervision and with their own"),
    "export": Command("write a detector as one file to use: .safetensors, ONNX, torch.export"),
    "export-weights": Command("write a checkpoint's weights alone"),
    "weights": Command("list and download published weights; tell what a file of weights is"),
    "convert": Command("convert a Pascal VOC or YOLO dataset to COCO's format, and tell what is wrong with it"),
    "make-data": Command("write a small dataset: drawn shapes, or a part of COCO"),
    "visualize-results": Command("draw predictions beside ground truth"),
    "visualize-attention": Command("show where the branches of SD-DETR's decoder attend", True),
    "completion": Command("print what makes a shell complete commands, options and configs"),
}


def usage() -> str:
    commands = "\n".join(f"  {name:20} {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: align-detr COMMAND ...\n\n"
        f"{commands}\n\n"
        "align-detr COMMAND --help tells more. Such as:\n\n"
        "  align-detr make-data --synthetic\n"
        "  align-detr train align_detr_tiny train.max_iter=100\n"
        "  align-detr train --data FOLDER\n"
        "  align-detr eval align_detr_tiny train.init_checkpoint=output/align_detr_tiny/model_final.pth"
    )


def main() -> None:
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(f"align-detr {__version__}")
        return
    command = COMMANDS.get(name)
    if command is None:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        print(f"error: there is no command {name}: {hint}", file=sys.stderr)
        sys.exit(2)
    if command.takes_config and words and not words[0].startswith("-") and "=" not in words[0]:
        words.insert(0, "--config-file")
    sys.argv = [f"align-detr {name}", *command.options, *words]
    module = command.module or name.replace("-", "_")
    try:
        import_module(f"detrkit.commands.{module}").main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)

