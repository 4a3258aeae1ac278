"""`python -m align_detr COMMAND ...`: the commands of `align_detr.commands`, each imported when it is called."""

import sys
from importlib import import_module

COMMANDS = {
    "train": "train or evaluate a detector",
    "demo": "detect objects in images, and draw them",
    "analyze": "measure how well a detector's scores agree with its boxes",
    "model": "count a detector's parameters, multiply-adds and activations",
    "ablate": "train with a grid of settings, several seeds each",
    "compare": "train detectors with Align-DETR's supervision and with their own",
    "benchmark": "time criterion, attention, training step, inference and data loading",
    "export": "write a checkpoint's weights alone",
    "convert": "convert a Pascal VOC or YOLO dataset to COCO's format",
    "make-data": "write a small dataset: drawn shapes, or a part of COCO",
    "visualize-results": "draw predictions beside ground truth",
    "visualize-attention": "show where the branches of SD-DETR's decoder attend",
}


def main() -> None:
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: align-detr COMMAND ...\n")
        print("\n".join(f"  {command:20} {what}" for command, what in COMMANDS.items()))
        print("\nalign-detr COMMAND --help tells more.")
        return
    if name not in COMMANDS:
        sys.exit(f"error: there is no command {name}: align-detr has {', '.join(COMMANDS)}")
    sys.argv = [f"align-detr {name}", *words]
    import_module(f"align_detr.commands.{name.replace('-', '_')}").main()


if __name__ == "__main__":
    main()
