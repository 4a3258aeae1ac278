"""Select the tests that also run on a real detectron2 and detrex: those against their recorded numbers."""

import inspect
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_itemcollected(item: pytest.Item) -> None:
    recorded = "golden" in inspect.signature(item.function).parameters
    if item.path.is_relative_to(HERE) and not recorded:
        item.add_marker(pytest.mark.engine("a part of the engine: its texts, limits and inner names"))
