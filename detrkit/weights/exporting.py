"""Write weights in the format of another code base: the inverse of the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from detrkit.runtime.files import atomic_write

from .classes import CLASS_AGNOSTIC
from .files import read
from .format import Format
from .formats import all_formats
from .tables import same

DETREX = "detrex"
SUFFIXES = (".pth", ".bin", ".safetensors")


def families() -> list[str]:
    """What `find_format` takes: detrex, code bases, and single formats by name."""
    known = [found for found in all_formats().values() if found.detector and not found.refusal]
    return [DETREX, *sorted({found.family for found in known}), *sorted(found.name for found in known)]


def detector_of(state: Mapping[str, Tensor]) -> str | None:
    """The detector that a state dict of detrex's names is of, as `Format.detector` names it; None: another one."""
    is_collaborative = any(name.startswith("collaboration.") for name in state)
    if "transformer.tgt_embed.weight" in state:
        return "CoDINO" if is_collaborative else "DINO"
    if CLASS_AGNOSTIC in state:
        return "CoDeformableDETR" if is_collaborative else "HDeformableDETR"
    if "anchor_box_embed.weight" in state:
        return "DABDETR"
    is_conditional = {"query_embed.weight", "transformer.decoder.ref_point_head.layers.0.weight"} <= state.keys()
    return "ConditionalDETR" if is_conditional else None


def find_format(wanted: str, state: Mapping[str, Tensor]) -> Format | None:
    """The format to write a state dict of detrex's names in; None for detrex's own.

    Args:
        wanted: one of `families`.

    Raises:
        ValueError: there is none of that name for this detector.
    """
    if wanted == DETREX:
        return None
    known = all_formats()
    if wanted in known and not known[wanted].refusal:
        return known[wanted]
    detector = detector_of(state)
    # The format of Co-Deformable-DETR also holds a detector without the training heads.
    detectors = {detector, "CoDeformableDETR"} if detector == "HDeformableDETR" else {detector}
    usable = [one for one in known.values() if one.detector in detectors and not one.refusal]
    found = [one for one in usable if one.family == wanted]
    if len(found) != 1:
        there = sorted({one.family for one in usable})
        names = ", ".join([DETREX, *there])
        raise ValueError(
            f"--format {wanted}: there is none of that name for a {detector or 'detector of this kind'}; "
            f"there are {names}"
        )
    return found[0]


def write_weights(
    path: Path, state: Mapping[str, Tensor], known: Format | None, classes: Sequence[str] | None = None
) -> None:
    """Write a state dict of detrex's names in a format, read it again and compare.

    Args:
        path: its suffix is one of SUFFIXES; `.safetensors` holds the tensors alone.
        known: None for detrex's names.
        classes: the names of the classes, for formats that keep them.

    Raises:
        ValueError: a tensor has no counterpart in the format.
        OSError: the file cannot be written, or does not hold what was written to it.
    """
    theirs = dict(state) if known is None else known.to_theirs(state)
    theirs = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in theirs.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import save
        except ImportError as error:
            raise ValueError(".safetensors needs a package: pip install safetensors, or write a .pth file") from error
        with atomic_write(path) as file:
            file.write(save(theirs, {"format": "pt"}))
    else:
        content = {"model": theirs} if known is None else known.wrap(theirs, {"classes": classes})
        with atomic_write(path) as file:
            torch.save(content, file)
    written = read(path).state
    if written.keys() != theirs.keys() or not all(same(written[name], tensor) for name, tensor in theirs.items()):
        raise OSError(f"{path} does not hold what was written to it: is the disk failing?")


NOT_IN_THE_WEIGHTS = {
    "model.position_embedding.temperature": "position temperature",
    "model.position_embedding.offset": "position offset",
    "model.inverse_sigmoid_eps": "eps of the inverse sigmoid in the head",
    "model.transformer.decoder.inverse_sigmoid_eps": "eps of the inverse sigmoid between decoder layers",
}


def needed_there(state: Mapping[str, Tensor], config: Mapping[str, object]) -> Iterator[str]:
    """What the config of the other code base must have for these weights, a line each.

    Args:
        state: of detrex's names.
        config: values by key, as far as they are known.
    """
    for key, what in NOT_IN_THE_WEIGHTS.items():
        if key in config:
            yield f"{what}: {config[key]}"
    biases = [tensor for name, tensor in state.items() if name.startswith("neck.") and name.endswith("conv.bias")]
    if biases:
        yield f"biases in the neck: {'yes' if any(bias.any() for bias in biases) else 'no'}"
