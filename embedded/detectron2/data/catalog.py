"""Catalogs by dataset name: functions that load a dataset, and its metadata."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _DatasetCatalog:
    """Functions that load datasets, by name."""

    def __init__(self):
        self._loaders: dict[str, Callable[[], list[dict]]] = {}

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        """Register `func`, which returns the images as dicts, under `name`; raise ValueError for a name in use."""
        if not callable(func):
            raise TypeError(f"dataset {name!r} is registered with a function that loads it, not {func!r}")
        if name in self._loaders:
            raise ValueError(f"dataset {name!r} is already registered; remove it first")
        self._loaders[name] = func

    def get(self, name: str) -> list[dict]:
        """Load the dataset; raise ValueError for an unknown name."""
        if name not in self._loaders:
            close = get_close_matches(name, self._loaders, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"registered are: {', '.join(self.list()) or 'none'}"
            raise ValueError(f"no dataset is registered as {name!r}; {hint}")
        return self._loaders[name]()

    __getitem__ = get

    def list(self) -> list[str]:
        return list(self._loaders)

    def remove(self, name: str) -> None:
        del self._loaders[name]

    def __contains__(self, name: str) -> bool:
        return name in self._loaders

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)


class Metadata(SimpleNamespace):
    """Metadata of a dataset as attributes, e.g. `thing_classes`. A value cannot be changed after it is set."""

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        known = ", ".join(self.as_dict())
        raise AttributeError(f"the metadata of dataset {self.name!r} has no {key!r}; it has: {known}")

    def __setattr__(self, key: str, value: Any) -> None:
        old = self.__dict__.get(key, value)
        if old != value:
            raise ValueError(f"the metadata {key!r} of dataset {self.name!r} is already {old!r}, not {value!r}")
        self.__dict__[key] = value

    def set(self, **values: Any) -> "Metadata":
        """Set several values; return self."""
        for key, value in values.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        return self.__dict__.get(key, default)

    def as_dict(self) -> dict[str, Any]:
        """Return a copy of all values."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return f"Metadata({self.as_dict()})"


class _MetadataCatalog:
    """Metadata by dataset name. `get` creates an empty entry for a new name."""

    def __init__(self):
        self._entries: dict[str, Metadata] = {}

    def get(self, name: str) -> Metadata:
        if not name:
            raise ValueError("a dataset needs a name")
        return self._entries.setdefault(name, Metadata(name=name))

    __getitem__ = get

    def list(self) -> list[str]:
        return list(self._entries)

    def remove(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
