"""Objects of one image as fields of equal length."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

__all__ = ["Instances"]


class Instances:
    """N objects of one image. Fields are attributes with one entry per object.

    Ground truth has `gt_boxes` (Boxes) and `gt_classes` (int64), predictions `pred_boxes`, `scores`, `pred_classes`.

    Args:
        image_size: (height, width) in pixels that the boxes refer to.
        kwargs: initial fields.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any):
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        # Called if normal look-up fails; `_fields` itself is missing during unpickling.
        if name.startswith("_") or name not in self._fields:
            raise AttributeError(f"Instances has no field {name!r}")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field; raise ValueError if its length differs from the other fields'."""
        others = [field for key, field in self._fields.items() if key != name]
        if others and len(value) != len(others[0]):
            raise ValueError(f"field {name!r} has {len(value)} entries for {len(others[0])} instances")
        self._fields[name] = value

    def has(self, name: str) -> bool:
        return name in self._fields

    def remove(self, name: str) -> None:
        del self._fields[name]

    def get(self, name: str) -> Any:
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """Return the dict of fields, not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """Move every field that has a method `to`, e.g. `instances.to("cuda")`."""
        return self._map(lambda value: value.to(*args, **kwargs) if hasattr(value, "to") else value)

    def pin_memory(self) -> "Instances":
        """Return a copy in page-locked memory; the DataLoader calls it for GPUs."""
        return self._map(lambda value: value.pin_memory() if hasattr(value, "pin_memory") else value)

    def _map(self, function: Callable[[Any], Any]) -> "Instances":
        return Instances(self._image_size, **{name: function(value) for name, value in self._fields.items()})

    def __getitem__(self, item: int | slice | Tensor) -> "Instances":
        """Select instances by a position, a slice, a bool mask (N,) or positions (M,); always return Instances."""
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"no instance {item} among {len(self)}")
            item = slice(item, item + 1 or None)
        return self._map(lambda value: _select(value, item))

    def __len__(self) -> int:
        if not self._fields:
            raise NotImplementedError("Instances without fields has no length")
        return len(next(iter(self._fields.values())))

    def __iter__(self):
        raise NotImplementedError("iterate over a field of Instances, not over Instances")

    @staticmethod
    def cat(instance_lists: "list[Instances]") -> "Instances":
        """Concatenate instances; raise ValueError for an empty list, different image sizes or different fields."""
        if not instance_lists:
            raise ValueError("no Instances to concatenate")
        first = instance_lists[0]
        for other in instance_lists[1:]:
            if other.image_size != first.image_size or other.get_fields().keys() != first.get_fields().keys():
                raise ValueError("Instances to concatenate differ in image size or in the names of their fields")
        return Instances(
            first.image_size,
            **{name: _concatenate([each.get(name) for each in instance_lists]) for name in first.get_fields()},
        )

    def __repr__(self) -> str:
        fields = "".join(f", {name}={value}" for name, value in self._fields.items())
        return f"Instances(image_size={self._image_size}{fields})"


def _select(value: Any, item: slice | Tensor) -> Any:
    """Return `value[item]`; lists and tuples accept tensors too."""
    if not isinstance(value, (list, tuple)) or isinstance(item, slice):
        return value[item]
    index = torch.as_tensor(item)
    positions = index.nonzero().flatten() if index.dtype == torch.bool else index
    return type(value)(value[i] for i in positions.tolist())


def _concatenate(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, (list, tuple)):
        return type(first)(chain.from_iterable(values))
    return type(first).cat(list(values))
