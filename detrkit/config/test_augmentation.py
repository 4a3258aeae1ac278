"""The options of test-time augmentation, `train.test_aug`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

KEY = "train.test_aug"
MERGES = ("wbf", "soft_nms")


@dataclass(frozen=True)
class TTAOptions:
    """Passes of test-time augmentation, and how their detections are merged. Names are those of detectron2's TEST.AUG.

    Attributes:
        min_sizes: shorter sides of the image in pixels, one for each pass; (): that of the test mapper.
        max_size: limit of the longer side; 0: that of the test mapper, in proportion to the shorter side.
        flip: also the mirrored image, at each size.
        merge: "wbf", weighted box fusion, or "soft_nms".
        iou: threshold of merging.

    Raises:
        ValueError: a value is of another type or out of its range.
    """

    min_sizes: tuple[int, ...] = ()
    max_size: int = 0
    flip: bool = True
    merge: str = "wbf"
    iou: float = 0.55

    def __post_init__(self) -> None:
        sizes_are_valid = isinstance(self.min_sizes, tuple) and all(_is_int(size, 1) for size in self.min_sizes)
        iou_is_number = isinstance(self.iou, int | float) and not isinstance(self.iou, bool)
        checks = {
            "min_sizes": (sizes_are_valid, "a list of sides in pixels, such as [640,800,960]"),
            "max_size": (_is_int(self.max_size, 0), "pixels, or 0 for the test mapper's proportion"),
            "flip": (isinstance(self.flip, bool), "True or False"),
            "merge": (self.merge in MERGES, " or ".join(MERGES)),
            "iou": (iou_is_number and 0 < self.iou < 1, "an IoU between 0 and 1, such as 0.55"),
        }
        for name, (is_valid, expected) in checks.items():
            if not is_valid:
                raise ValueError(f"{KEY}.{name}={getattr(self, name)!r}: expected {expected}")

    def plain(self) -> dict[str, Any]:
        """Return the options as they stand in a config."""
        return {"enabled": True, **asdict(self), "min_sizes": list(self.min_sizes)}


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def tta_options(cfg: DictConfig) -> TTAOptions | None:
    """Return the options of a config; None if test-time augmentation is off.

    Raises:
        ValueError: an option is invalid or unknown.
    """
    node = OmegaConf.select(cfg, KEY)
    if node is None:
        return None
    if not isinstance(node, DictConfig):
        raise ValueError(f"{KEY}={node!r}: expected options, such as {KEY}.enabled=True")
    values = OmegaConf.to_container(node, resolve=True)
    enabled = values.pop("enabled", False)
    if not isinstance(enabled, bool):
        raise ValueError(f"{KEY}.enabled={enabled!r}: expected True or False")
    if unknown := values.keys() - TTAOptions.__dataclass_fields__.keys():
        names = ", ".join(["enabled", *TTAOptions.__dataclass_fields__])
        raise ValueError(f"{KEY}.{min(unknown)}: there is no such option; there are {names}")
    if isinstance(values.get("min_sizes"), list):
        values["min_sizes"] = tuple(values["min_sizes"])
    options = TTAOptions(**values)
    return options if enabled else None


def set_tta(cfg: DictConfig, value: bool | Mapping[str, Any]) -> None:
    """Switch test-time augmentation on or off in a config.

    Args:
        value: True or False, or options that are changed; the others stay as they are.

    Raises:
        ValueError: it is none of these, or an option is invalid or unknown.
    """
    if not isinstance(value, bool | Mapping):
        raise ValueError(f"test_aug={value!r}: expected True, False or options such as {{'min_sizes': [640, 800]}}")
    changed = {"enabled": value} if isinstance(value, bool) else {"enabled": True, **value}
    OmegaConf.update(cfg, KEY, changed, merge=True, force_add=True)
    tta_options(cfg)
