"""Tables and sentences of a benchmark's records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tabulate import tabulate

# Labels of a measurement ("part", "batch", "image_size", "objects", …), and for each variant ("ours", "reference",
# "beside") its `Timing.summary` with "peak_bytes".
Record = dict[str, Any]


def seconds(record: Record) -> float:
    """Median seconds of ours."""
    return record["ours"]["median_s"]


def per_image(record: Record) -> float:
    """Median seconds of ours per image."""
    return seconds(record) / record["batch"]


COSTS: dict[str, Callable[[Record], float | None]] = {
    "step": seconds,
    "criterion": lambda record: record["ours"]["phases_s"]["criterion"],
    "memory": lambda record: record["ours"]["peak_bytes"],
    "products": lambda record: record["products"],
}


def spread(measured: Mapping[str, Any]) -> str:
    """Median and interquartile range in milliseconds."""
    return f"{1e3 * measured['median_s']:.4g} ± {1e3 * measured['iqr_s']:.2g} ms"


def megabytes(measured: Mapping[str, Any]) -> str:
    """Peak memory in megabytes."""
    return "unknown" if measured["peak_bytes"] is None else f"{measured['peak_bytes'] / 1e6:,.0f} MB"


def table(rows: Sequence[Record], keys: Sequence[str], columns: Mapping[str, Callable[[Record], Any]]) -> str:
    """A table with a line per record.

    Args:
        keys: labels to show.
        columns: further columns, between ours and the other variants.
    """
    cells = []
    for record in rows:
        ours = record["ours"]
        row = {key.replace("_", " "): record[key] for key in keys}
        row |= {"time": spread(ours), "peak memory": megabytes(ours)}
        row |= {name: value(record) for name, value in columns.items()}
        for name in ("reference", "beside"):
            if other := record.get(name):
                row |= {name: spread(other), f"memory, {name}": megabytes(other)}
                row[f"time of {name}"] = ours["median_s"] / other["median_s"]
                if other["peak_bytes"]:
                    row[f"memory of {name}"] = ours["peak_bytes"] / other["peak_bytes"]
        cells.append(row)
    return tabulate(cells, headers="keys", floatfmt=".2f")


def augmentation_table(rows: Sequence[Record]) -> str:
    """A table of milliseconds per image; rows of `time_augmentations`."""
    cells = [
        {
            "augmentation": row["augmentation"],
            "ms per image": 1e3 * row["image_s"],
            "more than none": 1e3 * row["added_s"],
            "images/s": round(1 / row["image_s"]),
        }
        for row in rows
    ]
    return tabulate(cells, headers="keys", floatfmt=".1f")


def growth_table(rows: Sequence[Record]) -> str:
    """A table of costs; "×" is the ratio to the smallest value of the same cause."""
    cells = []
    for cause in dict.fromkeys(record["cause"] for record in rows):
        group = [record for record in rows if record["cause"] == cause]
        for record in group:
            row = {"what grows": cause, "": record["value"], "step": spread(record["ours"])}
            row |= {"peak memory": megabytes(record["ours"])}
            for name, cost in COSTS.items():
                first = cost(group[0])
                row[f"{name} ×"] = cost(record) / first if first else None
            cells.append(row)
    return tabulate(cells, headers="keys", floatfmt=".2f")


def growth_lines(
    rows: Sequence[Record], fixed: str, varied: str, unit: str, value: Callable[[Record], float], what: str
) -> Iterator[str]:
    """For each value of the label `fixed`: how `value` grows from the smallest to the largest label `varied`."""
    for at in sorted({record[fixed] for record in rows}):
        line = sorted((record for record in rows if record[fixed] == at), key=lambda record: record[varied])
        first, last = line[0], line[-1]
        if first is not last:
            ratios = [value(record) / value(first) for record in line]
            yield (
                f"{fixed} {at}: from {first[varied]} to {last[varied]} {unit}, {what} × {ratios[-1]:.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
