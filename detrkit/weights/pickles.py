"""Reads pickles as data: plain values, and tensors as a description of where their numbers lie. Nothing is executed.

A pickle is a program for a small stack machine that may call any function it names. This module runs a subset of the
machine: the instructions that build plain data, and calls of the few names in `_CALLS`, which stand for functions of
this module. No name is ever imported, and no attribute of a Python object is ever set. Any other instruction or name
ends the reading.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MAX_TENSORS = 200_000


class RefusedError(ValueError):
    """A pickle contains something that is not plain data; the message names it."""


@dataclass(frozen=True)
class Name:
    """A dotted name in a pickle. It is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Opaque:
    """An object whose content is of no use here, such as the history of a metric."""

    name: str


@dataclass(frozen=True)
class StoredNumbers:
    """A storage: `count` values of one type under a key.

    Attributes:
        view: first value and number of values, if the storage is a part of the one under the key.
    """

    key: str
    dtype: torch.dtype
    count: int
    view: tuple[int, int] | None = None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose numbers lie in a storage."""

    storage: StoredNumbers
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def load(file: IO[bytes]) -> Any:
    """The object of the pickle that begins at the file's position; the position ends behind it.

    Raises:
        RefusedError: it calls a function, or makes an object, that is not plain data or a tensor.
        Exception: it is damaged, or no pickle; of any kind.
    """
    return _Machine().run(file)


class _Mark:
    pass


class _Object:
    """An `argparse.Namespace`, or an opaque object, under construction: `value` becomes its content."""

    def __init__(self, value: Any):
        self.value = value


def _ordered_dict(pairs: Any = ()) -> dict:
    return {key: value for key, value in pairs}


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
    if not isinstance(storage, StoredNumbers):
        raise RefusedError("a tensor without a storage")
    sizes = (offset, *shape, *stride)
    if len(shape) != len(stride) or any(type(size) is not int or size < 0 for size in sizes):
        raise RefusedError("a tensor of an impossible size")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    count = 1
    for size in shape:
        count *= size
    available = storage.view[1] if storage.view else storage.count
    # No more values than the storage has: a few bytes could otherwise claim any amount of memory.
    if count and (last >= available or count > available):
        raise RefusedError("a tensor that is larger than its storage")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _parameter(tensor: Any, *rest: Any) -> Any:
    if not isinstance(tensor, StoredTensor):
        raise RefusedError("a parameter that is not a tensor")
    return tensor


def _counter(counts: Any = None) -> dict:
    return dict(counts or {})


def _text(value: Any, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"_codecs.encode to {encoding}")
    return value.encode("latin1")


def _opaque(name: str) -> Callable[..., Opaque]:
    return lambda *arguments: Opaque(name)


_NAMESPACE = Name("argparse", "Namespace")
_HISTORY = Name("mmengine.logging.history_buffer", "HistoryBuffer")
_OBJECTS = (_NAMESPACE, _HISTORY)


def _attribute(owner: Any, attribute: Any, *rest: Any) -> Opaque:
    """`getattr` as mmengine's histories call it, for the names of their statistics."""
    if owner != _HISTORY:
        raise RefusedError("builtins.getattr")
    return Opaque(f"{_HISTORY}.{attribute}")


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "collections.defaultdict": lambda *arguments: {},
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": lambda sizes: tuple(sizes),
    "torch.device": lambda *arguments: ":".join(map(str, arguments)),
    "_codecs.encode": _text,
    "builtins.getattr": _attribute,
    "__builtin__.getattr": _attribute,
    "builtins.set": lambda values=(): list(values),
    "__builtin__.set": lambda values=(): list(values),
    "builtins.bytearray": lambda *arguments: Opaque("bytearray"),
    "numpy.dtype": _opaque("numpy.dtype"),
}
for _core in ("numpy.core", "numpy._core"):  # until numpy 1, and since numpy 2
    _CALLS[f"{_core}.multiarray.scalar"] = _opaque("a number of numpy")
    _CALLS[f"{_core}.multiarray._reconstruct"] = _opaque("an array of numpy")

_VALUES = {
    *map(str, _OBJECTS),
    *(f"torch.{name}" for name in DTYPES),
    *(str(dtype) for dtype in DTYPES.values()),
    "torch.storage.UntypedStorage",
    "numpy.ndarray",
    "builtins.dict",
    "builtins.list",
    "__builtin__.dict",
    "__builtin__.list",
    "numpy.float64",
    "numpy.int64",
}
"""Names that a pickle may mention without calling them."""


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.tensors = 0

    def run(self, file: IO[bytes]) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return _finished(self.stack.pop())
            if opcode.name in _CONSTANTS:
                self.stack.append(argument)
                continue
            instruction = getattr(self, f"do_{opcode.name.lower()}", None)
            if instruction is None:
                raise RefusedError(f"the instruction {opcode.name}")
            instruction(argument)
        raise EOFError("the pickle ends early")

    def pop_mark(self) -> list[Any]:
        items = []
        while not isinstance(item := self.stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def do_proto(self, version: int) -> None:
        if version > 5:
            raise RefusedError(f"a pickle of protocol {version}")

    def do_frame(self, size: int) -> None:
        pass

    def do_mark(self, _: None) -> None:
        self.stack.append(_Mark())

    def do_pop(self, _: None) -> None:
        self.stack.pop()

    def do_none(self, _: None) -> None:
        self.stack.append(None)

    def do_newtrue(self, _: None) -> None:
        self.stack.append(True)

    def do_newfalse(self, _: None) -> None:
        self.stack.append(False)

    def do_empty_dict(self, _: None) -> None:
        self.stack.append({})

    def do_empty_list(self, _: None) -> None:
        self.stack.append([])

    def do_empty_set(self, _: None) -> None:
        self.stack.append([])

    def do_empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def do_tuple(self, _: None) -> None:
        self.stack.append(tuple(map(_finished, self.pop_mark())))

    def do_list(self, _: None) -> None:
        self.stack.append(list(map(_finished, self.pop_mark())))

    def do_dict(self, _: None) -> None:
        items = self.pop_mark()
        self.stack.append({key: _finished(value) for key, value in zip(items[::2], items[1::2], strict=True)})

    def _tuple_of(self, count: int) -> None:
        items = [_finished(self.stack.pop()) for _ in range(count)]
        self.stack.append(tuple(items[::-1]))

    def do_tuple1(self, _: None) -> None:
        self._tuple_of(1)

    def do_tuple2(self, _: None) -> None:
        self._tuple_of(2)

    def do_tuple3(self, _: None) -> None:
        self._tuple_of(3)

    def do_append(self, _: None) -> None:
        item = self.stack.pop()
        _as(list, self.stack[-1]).append(_finished(item))

    def do_appends(self, _: None) -> None:
        items = self.pop_mark()
        _as(list, self.stack[-1]).extend(map(_finished, items))

    do_additems = do_appends

    def do_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _as(dict, self.stack[-1])[key] = _finished(value)

    def do_setitems(self, _: None) -> None:
        items = self.pop_mark()
        target = _as(dict, self.stack[-1])
        target.update((key, _finished(value)) for key, value in zip(items[::2], items[1::2], strict=True))

    def do_binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    do_put = do_long_binput = do_binput

    def do_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_get = do_long_binget = do_binget

    def do_global(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self._push_name(module, name)

    def do_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_name(_as(str, module), _as(str, name))

    def _push_name(self, module: str, name: str) -> None:
        found = Name(module, name)
        if str(found) not in _CALLS and str(found) not in _VALUES:
            raise RefusedError(str(found))
        self.stack.append(found)

    def do_reduce(self, _: None) -> None:
        arguments, function = _as(tuple, self.stack.pop()), _as(Name, self.stack.pop())
        if str(function) not in _CALLS:
            raise RefusedError(f"a call of {function}")
        result = _CALLS[str(function)](*arguments)
        self.tensors += isinstance(result, StoredTensor)
        if self.tensors > MAX_TENSORS:
            raise RefusedError(f"more than {MAX_TENSORS} tensors")
        self.stack.append(_Object(result) if isinstance(result, Opaque) else result)

    def do_newobj(self, _: None) -> None:
        arguments, cls = _as(tuple, self.stack.pop()), _as(Name, self.stack.pop())
        if cls not in _OBJECTS or arguments:
            raise RefusedError(f"an object of {cls}")
        self.stack.append(_Object({} if cls == _NAMESPACE else Opaque(str(cls))))

    def do_build(self, _: None) -> None:
        """Only a namespace takes what it is given; what PyTorch says of an ordered dict is left out."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Object) and isinstance(target.value, dict):
            target.value.update(_as(dict, state))
        elif not isinstance(target, _Object) and not isinstance(target, dict):
            raise RefusedError(f"the state of a {type(target).__name__}")

    def do_binpersid(self, _: None) -> None:
        """PyTorch's reference to a storage."""
        kind, storage, key, _, count, *view = _as(tuple, self.stack.pop())
        dtype = DTYPES.get(storage.name) if isinstance(storage, Name) and storage.module == "torch" else None
        if kind != "storage" or dtype is None or type(count) is not int or count < 0:
            raise RefusedError(f"a storage of {storage}")
        part = None
        if view and view[0] is not None:
            _, first, number = view[0]
            if any(type(n) is not int or n < 0 for n in (first, number)) or first + number > count:
                raise RefusedError("a part of a storage that is not in it")
            part = (first, number)
        self.stack.append(StoredNumbers(str(key), dtype, count, part))


_CONSTANTS = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "LONG4",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
}
"""Instructions that push the value beside them."""


def _as(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise RefusedError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _finished(value: Any) -> Any:
    return value.value if isinstance(value, _Object) else value
