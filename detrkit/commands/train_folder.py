"""`align-detr train --data FOLDER`: a folder of annotated pictures and a config become a config of their own."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path

from detectron2.utils import comm
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from detrkit.commands.command_line import load_config, take_overrides
from detrkit.datasets import Conversion, convert_dataset
from detrkit.datasets.formats import FORMATS
from detrkit.datasets.registration import own_prefix

BASE = "align_detr_r50_4scale_12ep"
EPOCHS = 50
EVALUATIONS = 10  # in the course of a training
KEPT = 2  # checkpoints: each is several times the model, and the best and the last are kept besides


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """`--data` and what belongs to it."""
    group = parser.add_argument_group("your own pictures")
    group.add_argument(
        "--data", type=Path, metavar="FOLDER",
        help="train on this folder, in any layout that `align-detr convert` reads; without a validation part, it is "
        f"split. The config, by default {BASE}, is written with it to the output folder, output/FOLDER",
    )  # fmt: skip
    group.add_argument("--format", choices=FORMATS, help="layout of --data (default: found out by the content)")
    group.add_argument("--classes", nargs="+", metavar="NAME", help="of --data, train on these alone")
    group.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help=f"passes over --data, where train.max_iter is not given (default {EPOCHS})",
    )


def check_folder_options(args: argparse.Namespace) -> None:
    """Sort out `args`, of which `--classes` may have taken overrides.

    Raises:
        ValueError: options do not fit together.
    """
    take_overrides(args.classes or [], args.opts)
    others = {"--format": args.format, "--classes": args.classes, "--epochs": args.epochs}
    if args.data is None and (stray := [name for name, value in others.items() if value is not None]):
        raise ValueError(f"{stray[0]} is for a folder of pictures: give it by --data")
    if args.data and args.eval_only:
        raise ValueError("--data is for training; to evaluate on its pictures, give the config.py that training wrote")
    if args.epochs is not None and args.epochs < 1:
        raise ValueError(f"--epochs {args.epochs}: at least 1")
    if args.data and not args.config_file:
        args.config_file = BASE


def config_of_folder(args: argparse.Namespace) -> str:
    """The config of a training on `args.data`, written by the first process of a run; all of them call it.

    Raises:
        ValueError: the folder cannot be used, or a training that is to go on would do so with other pictures.
    """
    cfg = load_config(args.config_file, args.opts)
    taken = {OverridesParser.create().parse_override(text).key_or_group for text in args.opts}
    output = Path(cfg.train.output_dir if "train.output_dir" in taken else f"output/{_name(args.data)}")
    file = output / "config.py"
    if comm.is_main_process():
        conversion = _convert(args, output / "data")
        for line in conversion.problems.report():
            print(line, file=sys.stderr)
        print(conversion.table(), end="\n\n")
        prefix = own_prefix(_name(args.data))
        if args.resume and file.is_file() and f"'{prefix}_train'" not in file.read_text(encoding="utf-8"):
            prefix = _name(args.data)  # as earlier versions called it
        file.write_text(_text(args, cfg, taken, conversion, output, prefix), encoding="utf-8")
    comm.synchronize()
    return str(file)


def _name(folder: Path) -> str:
    folder = folder.resolve()
    return re.sub(r"[^\w.-]", "_", folder.parent.name if folder.is_file() else folder.name)


def _convert(args: argparse.Namespace, data: Path) -> Conversion:
    before = {file: file.read_bytes() for file in sorted(data.glob("*.json"))} if args.resume else {}
    conversion = convert_dataset(args.data, data, format=args.format, only=args.classes, two_parts=True, force=True)
    for file, content in before.items():
        if file.read_bytes() != content:
            file.write_bytes(content)
            raise ValueError(
                f"{args.data} or --classes are not as they were when the training in {data.parent} began, so it is not "
                "resumed: another train.output_dir starts anew"
            )
    return conversion


def _text(
    args: argparse.Namespace, cfg: DictConfig, taken: set[str], conversion: Conversion, output: Path, prefix: str
) -> str:
    """The config, with a schedule of the folder's size. What is in `taken` the overrides have set."""
    name = _name(args.data)
    content = conversion.contents["train"]
    images = len({a["image_id"] for a in content["annotations"] if not a["iscrowd"]})
    if not cfg.dataloader.train.dataset.get("filter_empty", True):
        images = len(content["images"])
    batch = cfg.dataloader.train.total_batch_size
    iterations = math.ceil((args.epochs or EPOCHS) * images / batch)
    length = cfg.train.max_iter if "train.max_iter" in taken else iterations
    period = max(math.ceil(length / EVALUATIONS), math.ceil(images / batch))
    values = {
        "dataloader.train.dataset.names": f"{prefix}_train",
        "dataloader.test.dataset.names": f"{prefix}_val",
        "model.num_classes": len(conversion.classes),
        **_detections(cfg.model, len(conversion.classes)),
        "train.output_dir": str(output),
        "train.max_iter": iterations,
        "train.eval_period": period,
        "train.checkpointer.period": period,
        "train.checkpointer.max_to_keep": KEPT,
    }
    registrations = [
        f"register_coco({f'{prefix}_{split}'!r}, {str(file.absolute())!r}, {str(conversion.image_root.absolute())!r})"
        for split, file in conversion.files.items()
    ]
    path = Path(args.config_file)
    lines = [
        f'"""{path.stem} on the pictures of {name}: written by `align-detr train --data`, and yours to change."""',
        "",
        "from detrkit.commands.command_line import load_config",
        "from detrkit.datasets import register_coco",
        "",
        f"_base = load_config({str(path.absolute()) if path.is_file() else args.config_file!r}, {list(args.opts)!r})",
        "",
        *(f"{key} = _base.{key}" for key in cfg),
        "",
        *registrations,
        "",
        *(f"{key} = {value!r}" for key, value in values.items() if key not in taken),
        "",
    ]
    return "\n".join(lines)


def _detections(model: DictConfig, classes: int) -> dict[str, int]:
    """How many detections to keep of an image, where the config wants more than few classes make possible."""
    queries = model.get("num_queries_one2one") or model.get("num_queries")
    wanted = model.get("select_box_nums_for_evaluation")
    if queries and wanted and wanted > queries * classes:
        return {"model.select_box_nums_for_evaluation": queries * classes}
    return {}
