"""`align-detr COMMAND ...`, also as `python -m align_detr COMMAND ...`.

Each command is a module with `parser()`, `run(args)` and `main(words)`, which does both. A command's module is imported
when it is called, and imports PyTorch once its options are understood.
"""

import argparse
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from align_detr import __version__
from detrkit.commands.command_line import interrupts_end


class Command(NamedTuple):
    """A command.

    Attributes:
        summary: for the list of commands.
        module: of `detrkit.commands`; "" for the command's name.
    """

    summary: str
    module: str = ""


COMMANDS = {
    "train": Command("train a detector"),
    "eval": Command("evaluate a detector", "evaluate"),
    "demo": Command("detect objects in images, and draw them"),
    "configs": Command("list the configs, which every command takes by name or by path"),
    "analyze": Command("measure how well a detector's scores agree with its boxes"),
    "errors": Command("count a detector's errors by kind, and choose its score threshold"),
    "explore": Command("write a page to look at a detector's mistakes"),
    "model": Command("count a detector's parameters, multiply-adds and activations"),
    "benchmark": Command("time criterion, attention, training step, inference and data loading"),
    "gpu-report": Command("measure speed and memory on a GPU, and write one page"),
    "ablate": Command("train with a grid of settings, several seeds each"),
    "compare": Command("train detectors with Align-DETR's supervision and with their own"),
    "export": Command("write a detector as one file: .safetensors, ONNX, torch.export"),
    "export-weights": Command("write a checkpoint's weights alone"),
    "serve": Command("detect objects in images that come over HTTP; with a page for the browser"),
    "push": Command("upload a detector to the Hugging Face hub, with a model card"),
    "weights": Command("list and download published weights; show what a file of weights holds"),
    "convert": Command("convert a dataset to COCO's format, and list its mistakes"),
    "make-data": Command("write a small dataset: drawn shapes, or a part of COCO"),
    "show-data": Command("draw training images as a config augments them"),
    "visualize-results": Command("draw predictions beside ground truth"),
    "visualize-attention": Command("show where the branches of SD-DETR's decoder attend"),
    "completion": Command("print the shell code that completes commands, options, configs and their keys"),
}


def usage() -> str:
    commands = "\n".join(f"  {name:20} {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: align-detr COMMAND ...\n\n"
        f"{commands}\n\n"
        "`align-detr COMMAND --help` explains a command. Examples:\n\n"
        "  align-detr make-data --synthetic\n"
        "  align-detr train align_detr_tiny train.max_iter=100\n"
        "  align-detr train --data FOLDER\n"
        "  align-detr eval output/align_detr_tiny"
    )


def module_of(name: str) -> ModuleType:
    """Import the module of a command."""
    return import_module(f"detrkit.commands.{COMMANDS[name].module or name.replace('-', '_')}")


def complete() -> None:
    """Answer a shell that asks argcomplete's questions, and exit. Without argcomplete there is no answer."""
    try:
        import argcomplete
    except ImportError:
        sys.exit(1)
    words = os.environ.get("COMP_LINE", "").split()
    files = argcomplete.FilesCompleter()
    parser = tree(words[1] if len(words) > 1 else "")
    argcomplete.autocomplete(parser, always_complete_options=False, default_completer=files)


def tree(name: str) -> argparse.ArgumentParser:
    """Return a parser of all commands, of which one has its options.

    Args:
        name: of this command.
    """
    root = argparse.ArgumentParser(prog="align-detr")
    commands = root.add_subparsers()
    for command, about in COMMANDS.items():
        parents = [module_of(command).parser()] if command == name else []
        commands.add_parser(command, help=about.summary, parents=parents, add_help=not parents)
    return root


def main() -> None:
    try:
        try:
            run()
        finally:  # also on an exit, such as that of --help
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def run() -> None:
    """Run the command that `sys.argv` names."""
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what may follow
        complete()
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(f"align-detr {__version__}")
        return
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        print(f"error: there is no command {name}: {hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"align-detr {name}", *words]
    with interrupts_end():
        module_of(name).main(words)
