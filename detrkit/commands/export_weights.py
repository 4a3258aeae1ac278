"""Writes a checkpoint's weights alone, without the optimizer and the rest, to share them or to start from them.

    align-detr export-weights --checkpoint output/model_final.pth --output weights.safetensors [--ema] [--half] \\
        [--only backbone] [--format detrex|mmdet|original|huggingface|sensex]

A `.pth` file holds `{"model": state dict}`, which detectron2, detrex and this project load; a `.safetensors` file the
state dict. Both names of a shared parameter are kept; Co-DETR's auxiliary heads, which only training needs, are not.
`--only backbone` keeps that module's weights under their names: from such a file `train.init_checkpoint` starts the
backbone of any detector that has the same. What was written is read again and compared.

`--format` writes the names and the layout of another code base, so that it can load what was trained here. The
checkpoint may be of any format too: `--format detrex` converts one for use in detrex.
"""

from __future__ import annotations

import argparse
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.config import instantiate
from tabulate import tabulate
from torch import Tensor

from detrkit.commands.command_line import errors_in_one_line
from detrkit.config.load import load_config
from detrkit.runtime.files import atomic_write
from detrkit.training.training_parts import without_training_parts
from detrkit.weights import (
    DETREX,
    SUFFIXES,
    convert,
    families,
    find_format,
    local_path,
    look_at,
    needed_there,
    write_weights,
)

FORMATS = (".pth", ".safetensors")
AVERAGES = ("ema_state", "ema_model")
State = dict[str, Tensor]


def read_checkpoint(path: Path) -> Mapping:
    """A `.pth` or `.safetensors` file as `{"model": state dict, ...}`. No code in it is run."""
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    if tarfile.is_tarfile(path):  # PyTorch's format of 2017, in which versions before 2.6 let code through
        raise ValueError(f"{path} is a tar archive, not a checkpoint: refused")
    try:
        if path.suffix == ".safetensors":
            return {"model": _safetensors().load_file(path)}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        message = " ".join(str(error).split())
        if name := re.search(r"(?:GLOBAL|class|function) (\w+(?:\.\w+)+)", message):
            raise ValueError(f"{path} wants to run {name[1]}: refused") from error
        reason = message.partition(". ")[0] or type(error).__name__
        raise ValueError(f"{path} cannot be loaded safely: {reason}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} is not a checkpoint, but {type(content).__name__}")
    return content if isinstance(content.get("model"), Mapping) else {"model": content}


def weights_of(checkpoint: Mapping, ema: bool, source: Path) -> State:
    """The state dict in a checkpoint, or with `ema` its moving average, under the names of the model."""
    weights = without_wrapper(checkpoint["model"])
    if odd := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{source} is no checkpoint of a model: {odd[0]} in it is not a tensor")
    if not weights:
        raise ValueError(f"{source} has no weights")
    if not ema:
        return weights
    average = next((checkpoint[key] for key in AVERAGES if checkpoint.get(key)), None)
    if average is None:
        raise ValueError(f"{source} has no averaged weights: train.model_ema.enabled was off; leave out --ema")
    return averaged(weights, without_wrapper(average), source)


def averaged(weights: State, average: State, source: Path) -> State:
    """The average under all names of `weights`: itself, it has but one name of each shared parameter."""
    by_place = {place(weights[name]): tensor for name, tensor in average.items() if name in weights}
    if lacking := [name for name, tensor in weights.items() if place(tensor) not in by_place]:
        raise ValueError(f"{source}: the averaged weights lack {', '.join(lacking[:3])}")
    return {name: by_place[place(tensor)] for name, tensor in weights.items()}


def place(tensor: Tensor) -> tuple:
    """Equal for the names of one shared parameter: they lie in the same memory."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def without_wrapper(state: Mapping[str, Tensor]) -> State:
    """Names without DistributedDataParallel's prefix."""
    wrapped = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in state.items()}


def halved(state: State) -> State:
    """Floating-point tensors in float16; shared ones stay shared."""
    done: dict[tuple, Tensor] = {}
    for name, tensor in state.items():
        if tensor.is_floating_point() and place(tensor) not in done:
            half = done[place(tensor)] = tensor.half()
            if not torch.equal(half.isfinite(), tensor.isfinite()):
                raise ValueError(f"{name} has values beyond float16 (up to {tensor.abs().max():.3g}): leave out --half")
    return {name: done.get(place(tensor), tensor) for name, tensor in state.items()}


def part_of(state: State, module: str, source: Path) -> State:
    """The tensors of the module of that name, such as backbone or transformer.encoder, under their whole names."""
    part = {name: tensor for name, tensor in state.items() if name.startswith(f"{module}.")}
    if not part:
        modules = ", ".join(dict.fromkeys(name.partition(".")[0] for name in state))
        raise ValueError(f"--only {module}: {source} has no such module, but {modules}")
    return part


def check_against(config: str, overrides: list[str], state: State, source: Path) -> None:
    """Raise ValueError unless these are the weights of the config's model."""
    cfg = load_config(config, overrides)
    cfg.train.device = "cpu"
    model = without_training_parts(instantiate(cfg.model).state_dict())
    ours = {name: tuple(tensor.shape) for name, tensor in model.items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if different := sorted({name for name, _ in ours.items() ^ theirs.items()}):
        name = different[0]
        raise ValueError(
            f"{source} is not of the model in {config}: {len(different)} tensors differ, such as {name}, "
            f"{theirs.get(name, 'missing')} in the checkpoint and {ours.get(name, 'missing')} in the model"
        )


def write(state: State, path: Path) -> None:
    """Write the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        if path.suffix == ".safetensors":  # which refuses tensors that share memory
            file.write(_safetensors().save({name: tensor.clone().contiguous() for name, tensor in state.items()}))
        else:
            torch.save({"model": state}, file)


def verify(state: State, path: Path) -> None:
    """Raise OSError unless the file gives back exactly these tensors."""
    written = read_checkpoint(path)["model"]
    if state.keys() != written.keys() or not all(
        tensor.dtype == written[name].dtype and torch.equal(tensor, written[name]) for name, tensor in state.items()
    ):
        raise OSError(f"{path} does not hold what was written to it: is the disk failing?")


def summary(state: State, path: Path) -> str:
    """A table by module. Its values are parameters and buffers; those of a shared one count where it comes first."""
    values: dict[str, int] = {}
    tensors: dict[str, int] = {}
    seen = set()
    for name, tensor in state.items():
        module = name.partition(".")[0]
        tensors[module] = tensors.get(module, 0) + 1
        values[module] = values.get(module, 0) + (0 if place(tensor) in seen else tensor.numel())
        seen.add(place(tensor))
    rows = [[module, tensors[module], f"{values[module]:,}"] for module in tensors]
    rows.append(["all", len(state), f"{sum(values.values()):,}"])
    table = tabulate(rows, ["module", "tensors", "values"], colalign=("left", "right", "right"), disable_numparse=True)
    kinds = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}))
    return f"{table}\n{path}: {path.stat().st_size / 1e6:.1f} MB, {kinds}"


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as error:
        raise ValueError(".safetensors needs a package: pip install safetensors, or write a .pth file") from error
    return safetensors.torch


def export(args: argparse.Namespace) -> str:
    """Writes the file and returns the table about it.

    Raises:
        ValueError: the checkpoint cannot be used, or not be written in this format.
        OSError: it cannot be downloaded.
    """
    suffixes = FORMATS if args.format == DETREX else SUFFIXES
    if args.output.suffix not in suffixes:
        raise ValueError(f"--output {args.output}: a name that ends in {' or '.join(suffixes)}, please")
    args.checkpoint = Path(local_path(args.checkpoint))
    if args.output.resolve() == args.checkpoint.resolve():
        raise ValueError(f"--output {args.output} is the checkpoint itself: give another name")
    if args.overrides and not args.config_file:
        raise ValueError(f"{args.overrides[0]} overrides a config, but none is given: add --config-file")
    if args.only and args.format != DETREX:
        raise ValueError(f"--only {args.only}: --format {args.format} is for whole models")
    state = converted(args) or weights_of(read_checkpoint(args.checkpoint), args.ema, args.checkpoint)
    known = find_format(args.format, state)
    if known is None or known.detector != "CoDINO":
        state = without_training_parts(state)
    if args.config_file:
        check_against(args.config_file, args.overrides, state, args.checkpoint)
    if args.only:
        state = part_of(state, args.only, args.checkpoint)
    if args.half:
        state = halved(state)
    if known is None:
        write(state, args.output)
        verify(state, args.output)
        return summary(state, args.output)
    found = look_at(args.checkpoint)
    write_weights(args.output, state, known, found.classes)
    needs = "\n".join(f"  {line}" for line in needed_there(state, found.config))
    return f"{summary(state, args.output)}\nin the format of {known.title}, whose config needs:\n{needs}"


def converted(args: argparse.Namespace) -> State | None:
    """The weights of a checkpoint of another code base under detrex's names; None for other checkpoints."""
    if not args.checkpoint.is_file():
        return None
    try:
        found = look_at(args.checkpoint)
    except ValueError:  # for `read_checkpoint` to explain
        return None
    if found.format is None:
        return None
    if args.ema:
        raise ValueError(f"--ema: {found.source} has one set of weights")
    return convert(look_at(args.checkpoint, data=True)).state


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--checkpoint", help="model_final.pth of a training, or zoo:NAME", **required)
    parser.add_argument("--output", type=Path, help="the file to write, .pth or .safetensors", **required)
    parser.add_argument("--ema", action="store_true", help="the moving average instead of the weights themselves")
    parser.add_argument("--half", action="store_true", help="floating-point numbers in float16")
    parser.add_argument(
        "--format", choices=families(), default=DETREX, metavar="NAME", help=f"of {', '.join(families())}"
    )
    parser.add_argument("--only", metavar="MODULE", help="this part of the model, such as backbone")
    parser.add_argument("--config-file", default="", help="check that the weights are of this config's model")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with errors_in_one_line():
        print(export(args))
