"""Files of weights, read without executing anything in them."""

from __future__ import annotations

import errno
import os
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER

from detrkit.runtime.weight_files import weights_problem

from .names import local_path
from .pickles import RefusedError, StoredNumbers, StoredTensor, load

STATES = ("model", "state_dict")
"""Where files keep their weights; a file without any of them is a state dict itself."""

WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and `torch.compile` put before every name."""

MAX_PICKLE = 256 * 2**20  # bytes; the tensors lie outside of it


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights.

    Attributes:
        path: where it lies.
        state: its tensors by name, without prefixes of wrappers.
        extra: what else it holds, plain data, such as `meta`; `args`, an `argparse.Namespace`, is a dictionary here.
    """

    path: Path
    state: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)

    def extra_dict(self, name: str) -> dict[str, Any]:
        """`extra[name]` if it is a dictionary, else an empty one."""
        value = self.extra.get(name)
        return value if isinstance(value, dict) else {}


def read(path: str | os.PathLike, data: bool = True) -> WeightsFile:
    """Read a `.pth`, `.bin` or `.safetensors` file; its content tells which it is, whatever its name.

    Args:
        path: a file, or a name as `names.local_path` takes it.
        data: read the numbers; otherwise the tensors are on the device "meta", which takes no memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of weights; it is damaged; or it contains something that is not plain data.
        OSError: it cannot be read.
    """
    path = Path(local_path(path))
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    if problem := weights_problem(path):
        raise ValueError(problem)
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"PK\x03\x04"):
        content = _guarded(path, _read_zip, data)
    elif head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return WeightsFile(path, _without_wrappers(_read_safetensors(path, data)), _beside(path))
    elif tarfile.is_tarfile(path):
        raise ValueError(f"{path} is a tar archive, not a file of weights: unpack it first")
    else:
        content = _guarded(path, _read_legacy, data)
    return _weights_file(path, content)


def _guarded(path: Path, reader: Any, data: bool) -> Any:
    try:
        return reader(path, data)
    except RefusedError as error:
        raise ValueError(
            f"{path} contains {error}, which is not plain data: refused; if you trust its source, save its tensors anew"
        ) from error
    except Exception as error:  # a damaged file may trip over anything, also over a seek to a negative position
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"{path} is not a file of weights, or it is damaged: {reason}") from error


def _weights_file(path: Path, content: Any) -> WeightsFile:
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(content).__name__} instead of weights by name")
    extra: dict[str, Any] = {}
    state: Any = content
    for key in STATES:
        if isinstance(content.get(key), dict):
            state = content[key]
            extra = {str(name): value for name, value in content.items() if name != key}
            break
    else:
        extra = {str(name): value for name, value in content.items() if not isinstance(value, Tensor)}
        state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if odd := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path} is not a checkpoint of a model: {odd[0]} in it is not a tensor")
    if not state:
        raise ValueError(f"{path} is not a checkpoint of a model: it has no tensors")
    return WeightsFile(path, _without_wrappers({str(name): tensor for name, tensor in state.items()}), extra)


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in (*WRAPPERS, *WRAPPERS):  # in any order
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _read_safetensors(path: Path, data: bool) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ValueError(f"{path} needs a package to read it: pip install safetensors") from error
    try:
        with safe_open(path, "pt") as file:
            if data:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: torch.empty(part.get_shape(), device="meta") for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _beside(path: Path) -> dict[str, Any]:
    """The `config.json` that Hugging Face puts beside a file of weights."""
    import json

    config = path.with_name("config.json")
    if not config.is_file() or config.stat().st_size > 2**24:
        return {}
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return {"config": content} if isinstance(content, dict) else {}


def _read_zip(path: Path, data: bool) -> Any:
    """PyTorch's format since 1.6: a pickle and a file for each storage, uncompressed in a zip archive."""
    with zipfile.ZipFile(path) as archive:
        if any("/code/" in name for name in archive.namelist()):
            raise RefusedError("a TorchScript program")
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            parts = entry.filename.split("/")
            if entry.filename in entries or ".." in parts or parts[0] == "" or "\\" in entry.filename:
                raise RefusedError(f"the entry {entry.filename!r}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise RefusedError(f"the compressed entry {entry.filename!r}")
            entries[entry.filename] = entry
        if sum(entry.file_size for entry in entries.values()) > path.stat().st_size:
            raise RefusedError("entries that overlap")
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it has no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if entries[pickles[0]].file_size > MAX_PICKLE:
            raise RefusedError(f"a pickle of more than {MAX_PICKLE} bytes")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are in big-endian order")
        with archive.open(pickles[0]) as file:
            content = load(file)

        def numbers(storage: StoredNumbers) -> Tensor:
            name = f"{root}data/{storage.key}"
            if name not in entries or entries[name].file_size < storage.count * storage.dtype.itemsize:
                raise ValueError(f"the storage {storage.key} is missing or too short")
            if not data:
                return torch.empty(storage.count, dtype=storage.dtype, device="meta")
            return _from_bytes(archive.read(name), storage)

        return _with_tensors(content, numbers)


def _read_legacy(path: Path, data: bool) -> Any:
    """PyTorch's format before 1.6: pickles, then the storages one by one."""
    with path.open("rb") as file:
        if load(file) != MAGIC_NUMBER:
            raise ValueError("it does not begin as PyTorch's files do")
        load(file)  # the version of the format
        platform = load(file)
        if isinstance(platform, dict) and platform.get("little_endian") is False:
            raise ValueError("its numbers are in big-endian order")
        content = load(file)
        keys = load(file)
        if not isinstance(keys, list):
            raise ValueError("it has no list of storages")
        wanted = {storage.key: storage for storage in _storages(content)}
        stored: dict[str, Tensor] = {}
        for key in map(str, keys):
            stored[key] = _legacy_storage(file, wanted.get(key), data, path.stat().st_size)

        def numbers(storage: StoredNumbers) -> Tensor:
            if storage.key not in stored or len(stored[storage.key]) < storage.count:
                raise ValueError(f"the storage {storage.key} is missing or too short")
            return stored[storage.key]

        return _with_tensors(content, numbers)


def _legacy_storage(file: IO[bytes], storage: StoredNumbers | None, data: bool, size: int) -> Tensor:
    count = int.from_bytes(file.read(8), "little")
    if storage is None:
        raise ValueError("it has a storage of no tensor")
    length = count * storage.dtype.itemsize
    if file.tell() + length > size:
        raise EOFError("the file ends early")
    if data:
        return _from_bytes(file.read(length), storage)
    file.seek(length, os.SEEK_CUR)
    return torch.empty(count, dtype=storage.dtype, device="meta")


def _from_bytes(content: bytes, storage: StoredNumbers) -> Tensor:
    count = len(content) // storage.dtype.itemsize
    return torch.frombuffer(bytearray(content), dtype=storage.dtype, count=count) if count else torch.empty(0)


def _storages(content: Any) -> list[StoredNumbers]:
    return [tensor.storage for _, tensor in _stored_tensors(content)]


def _stored_tensors(content: Any) -> list[tuple[list, StoredTensor]]:
    """The tensors in nested dictionaries, lists and tuples. Each container is visited once."""
    found, seen, waiting = [], set(), [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, StoredTensor):
            found.append(([], value))
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return found


def _with_tensors(content: Any, numbers: Any) -> Any:
    """`content`, whose state dicts have tensors instead of descriptions of them; other tensors are left out."""
    if not isinstance(content, dict):
        return content
    storages: dict[str, Tensor] = {}

    def tensor(stored: StoredTensor) -> Tensor:
        storage = stored.storage
        if storage.key not in storages:
            storages[storage.key] = numbers(storage)
        values = storages[storage.key]
        if storage.view:
            first, count = storage.view
            values = values[first : first + count]
        return values.as_strided(stored.shape, stored.stride, values.storage_offset() + stored.offset)

    def converted(state: Mapping) -> dict:
        return {k: tensor(v) if isinstance(v, StoredTensor) else v for k, v in state.items()}

    result = converted(content)
    for key in STATES:
        if isinstance(content.get(key), dict):
            return {k: converted(v) if k == key else v for k, v in content.items()}
    return result
