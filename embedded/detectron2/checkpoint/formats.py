"""Read files of weights without running code in them.

A pickle may call any function that it names. Therefore PyTorch's restricted unpickler reads `.pth` files, and an
unpickler that knows only numpy arrays reads other pickles. Both stop at the first unknown name.
"""

from __future__ import annotations

import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch.serialization import MAGIC_NUMBER

_ZIP = b"PK\x03\x04"


def read_weights(path: str | Path) -> Any:
    """Read a file of weights to the CPU. The content is usually a (nested) dict of tensors or numpy arrays.

    Formats: PyTorch's current format and the one before 1.6, `.safetensors`, and pickles of numpy arrays, also of
    Python 2. The content decides, not the name.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: the format is unknown, the file is damaged, or it would run code or create objects other than
            tensors, arrays and plain data. The message names the file and the object.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(_ZIP):
        return _read_torch(path)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:  # length, then a header in JSON
        return _read_safetensors(path)
    # A legacy file may also be a tar archive, in which PyTorch before 2.6 runs code.
    if tarfile.is_tarfile(path):
        raise ValueError(f"{path} is a tar archive, not a file of weights: unpack it, or save it again with torch.save")
    content = _unpickle(path)
    return _read_torch(path) if isinstance(content, int) and content == MAGIC_NUMBER else content


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(f"{path} needs the package safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {_first_sentence(error)}") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        if name := _foreign_name(path):
            raise ValueError(
                f"{path} wants to run {name}: refused; if you trust its source, save its tensors anew without that"
            ) from error
        reason = _first_sentence(error)
        raise ValueError(f"{path} is not a checkpoint that PyTorch can load safely: {reason}") from error


def _unpickle(path: Path) -> Any:
    """Return the first object of a file of pickles."""
    with path.open("rb") as file:
        try:
            return _with_arrays(_ArrayUnpickler(file).load())
        except _RefusedError as refusal:
            raise ValueError(f"{path} wants to run {refusal}: refused") from refusal
        except Exception as error:  # in a file that is not a pickle, any byte may be an instruction
            file.seek(0)
            raise ValueError(
                f"{path} is not a file of weights, or a damaged one: it begins with {file.read(16)!r}"
            ) from error


class _RefusedError(pickle.UnpicklingError):
    """A refused name; the message is the dotted name."""


class _DType:
    """Safe replacement of `numpy.dtype` (a file could forge its state): the type of a number."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        self.code, self.byte_order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.byte_order = state[1]

    def dtype(self) -> np.dtype:
        if not re.fullmatch(r"[biuf]\d+", self.code):
            raise _RefusedError(f"numpy.dtype({self.code!r})")
        return np.dtype(self.code).newbyteorder(self.byte_order)


class _Array:
    """Safe replacement of `numpy.ndarray` (a file could forge its memory)."""

    array: np.ndarray

    def __init__(self, subtype: Any, shape: Any, dtype: Any):
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _array(data, dtype, shape, "F" if is_fortran else "C")


def _array(
    data: Any, dtype: _DType, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> np.ndarray:
    numbers = dtype.dtype()
    flat = np.frombuffer(data.encode("latin1") if isinstance(data, str) else bytes(data), numbers)
    return flat.reshape(shape, order=order) if axes is None else flat.reshape(shape).transpose(axes)


def _scalar(dtype: _DType, data: Any) -> np.ndarray:
    return _array(data, dtype, (), "C")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """`codecs.encode` for pickles of bytes; other encodings are refused, as they import modules of their name."""
    if encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"_codecs.encode to {encoding}")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,  # an argument of `_reconstruct`
    ("numpy", "dtype"): _DType,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "bytearray"): bytearray,
    ("__builtin__", "bytearray"): bytearray,
    ("__builtin__", "bytes"): bytes,  # empty bytes, up to protocol 2
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1, and numpy 2
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _Array
    _KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _array


def _with_arrays(content: Any) -> Any:
    """Replace each `_Array` in `content` by its numpy array."""
    if isinstance(content, _Array):
        return content.array
    if isinstance(content, dict):
        return {key: _with_arrays(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_with_arrays(value) for value in content]
    return content


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that accepts only the names in `_KNOWN`."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise _RefusedError(f"{module}.{name}")
        return _KNOWN[module, name]


class _StandIn:
    """Replacement of PyTorch's classes and functions in `_NameFinder`."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _NameFinder(_ArrayUnpickler):
    """Unpickler that stops at the first name outside PyTorch, and creates no objects of PyTorch."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "torch":
            return _StandIn
        if module.partition(".")[0] == "numpy":
            raise _RefusedError(f"{module}.{name}")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> None:
        return None


def _foreign_name(path: Path) -> str | None:
    """Return the first name in a file of PyTorch that is neither PyTorch's nor of plain data."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(name) as file:
                    _NameFinder(file).load()
        else:
            with path.open("rb") as file:
                for _ in ("magic number", "version", "platform", "content"):
                    _NameFinder(file).load()
    except _RefusedError as refusal:
        return str(refusal)
    except Exception:  # damaged in another way; PyTorch's message describes it
        return None
    return None


def _first_sentence(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).partition(". ")[0]
