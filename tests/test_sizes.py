"""Files and functions stay small enough to be read in one sitting."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "detrkit").rglob("*.py"))
MOST_LINES, MOST_LINES_OF_FUNCTION = 400, 60
MOST_LINES_OF_METHOD = 1200  # of projects/align_detr, without its configs


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_of_the_workbench(path):
    """A newcomer reads a file without a break, and a function without scrolling."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert not {name: length for name, length in lengths.items() if length > MOST_LINES_OF_FUNCTION}


def test_the_method_alone():
    """projects/align_detr is the method and nothing else."""
    files = [path for path in (ROOT / "projects/align_detr").rglob("*.py") if "configs" not in path.parts]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= MOST_LINES_OF_METHOD
