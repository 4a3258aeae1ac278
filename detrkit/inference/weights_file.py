"""Write a checkpoint's weights alone, under detrex's names or those of another code base."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.config import instantiate
from tabulate import tabulate
from torch import Tensor

from detrkit.config.load import load_config
from detrkit.runtime.files import atomic_write
from detrkit.runtime.weight_files import weights_problem
from detrkit.training.training_parts import without_training_parts
from detrkit.weights import DETREX, SUFFIXES, convert, find_format, look_at, needed_there, write_weights

FORMATS = (".pth", ".safetensors")
AVERAGES = ("ema_state", "ema_model")
State = dict[str, Tensor]


def read_checkpoint(path: Path) -> Mapping:
    """Read a `.pth` or `.safetensors` file as `{"model": state dict, ...}`. No code in it is run."""
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    if problem := weights_problem(path):
        raise ValueError(problem)
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
    """Return the state dict in a checkpoint, or with `ema` its moving average, under the names of the model."""
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
    """Return the average under all names of `weights`. The average has one name for each shared parameter."""
    by_place = {place(weights[name]): tensor for name, tensor in average.items() if name in weights}
    if lacking := [name for name, tensor in weights.items() if place(tensor) not in by_place]:
        raise ValueError(f"{source}: the averaged weights lack {', '.join(lacking[:3])}")
    return {name: by_place[place(tensor)] for name, tensor in weights.items()}


def place(tensor: Tensor) -> tuple:
    """Return where a tensor lies in memory: equal for the names of one shared parameter."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def without_wrapper(state: Mapping[str, Tensor]) -> State:
    """Remove DistributedDataParallel's prefix from the names."""
    wrapped = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in state.items()}


def halved(state: State) -> State:
    """Convert floating-point tensors to float16. Shared tensors stay shared."""
    done: dict[tuple, Tensor] = {}
    for name, tensor in state.items():
        if tensor.is_floating_point() and place(tensor) not in done:
            half = done[place(tensor)] = tensor.half()
            if not torch.equal(half.isfinite(), tensor.isfinite()):
                raise ValueError(f"{name} has values beyond float16 (up to {tensor.abs().max():.3g}): leave out --half")
    return {name: done.get(place(tensor), tensor) for name, tensor in state.items()}


def part_of(state: State, module: str, source: Path) -> State:
    """Return the tensors of a module, such as "backbone" or "transformer.encoder", under their full names."""
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
    """Write the file completely, or leave it as it was."""
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
    """Return a table by module. Values are parameters and buffers; shared ones count where they come first."""
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


def export_weights(
    checkpoint: Path,
    output: Path,
    *,
    format: str = DETREX,
    ema: bool = False,
    half: bool = False,
    only: str | None = None,
    config: str = "",
    overrides: Sequence[str] = (),
) -> str:
    """Write the weights of a checkpoint to a file, read it again and compare.

    Args:
        checkpoint: of this project or of another code base.
        output: ends in .pth or .safetensors.
        format: whose names and layout to write: "detrex" or one of `detrkit.weights.families()`.
        ema: write the moving average.
        half: write floating-point tensors in float16.
        only: a module, such as "backbone"; its tensors keep their full names.
        config: check that the weights fit the model of this config.
        overrides: `key=value` for the config.

    Returns:
        A table of the written tensors by module.

    Raises:
        ValueError: the checkpoint cannot be used, or not be written in this format.
        OSError: a file cannot be read or written.
    """
    suffixes = FORMATS if format == DETREX else SUFFIXES
    if output.suffix not in suffixes:
        raise ValueError(f"--output {output}: the name must end in {' or '.join(suffixes)}")
    if output.resolve() == checkpoint.resolve():
        raise ValueError(f"--output {output} is the checkpoint itself: give another name")
    if overrides and not config:
        raise ValueError(f"{overrides[0]} overrides a config, but none is given: add --config-file")
    if only and format != DETREX:
        raise ValueError(f"--only {only}: --format {format} is for whole models")
    state = converted(checkpoint, ema) or weights_of(read_checkpoint(checkpoint), ema, checkpoint)
    known = find_format(format, state)
    if known is None or known.detector not in ("CoDINO", "CoDeformableDETR"):
        state = without_training_parts(state)
    if config:
        check_against(config, list(overrides), state, checkpoint)
    if only:
        state = part_of(state, only, checkpoint)
    if half:
        state = halved(state)
    if known is None:
        write(state, output)
        verify(state, output)
        return summary(state, output)
    found = look_at(checkpoint)
    write_weights(output, state, known, found.classes)
    needs = "\n".join(f"  {line}" for line in needed_there(state, found.config))
    return f"{summary(state, output)}\nin the format of {known.title}, whose config needs:\n{needs}"


def converted(checkpoint: Path, ema: bool) -> State | None:
    """Return the weights of another code base's checkpoint under detrex's names; None for other checkpoints."""
    if not checkpoint.is_file():
        return None
    try:
        found = look_at(checkpoint)
    except ValueError:  # `read_checkpoint` explains it
        return None
    if found.format is None:
        return None
    if ema:
        raise ValueError(f"--ema: {found.source} has one set of weights")
    return convert(look_at(checkpoint, data=True)).state
