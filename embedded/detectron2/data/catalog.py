"""Two tables by dataset name: functions that load it, and its metadata."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _DatasetCatalog:
    """Dataset names, and the functions that load them."""

    def __init__(self):
        self._loaders: dict[str, Callable[[], list[dict]]] = {}

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        """Makes `name` stand for the images that `func()` returns, one dict each; ValueError for a name in use."""
        if not callable(func):
            raise TypeError(f"dataset {name!r} is registered with a function that loads it, not {func!r}")
        if name in self._loaders:
            raise ValueError(f"dataset {name!r} is already registered; remove it first")
        self._loaders[name] = func

    def get(self, name: str) -> list[dict]:
        """Loads the dataset; ValueError for a name that nobody registered."""
        if name not in self._loaders:
            close = get_close_matches(name, self._loaders, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(self.list()) or 'none'}"
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
    """Metadata of a dataset as attributes, such as `thing_classes`. A value that is set cannot be changed."""

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
        """Sets several; returns itself."""
        for key, value in values.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        return self.__dict__.get(key, default)

    def as_dict(self) -> dict[str, Any]:
        """A copy of everything known."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return f"Metadata({self.as_dict()})"


class _MetadataCatalog:
    """Dataset names, and their metadata. `get` makes an empty entry for a new name."""

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
