"""The repository's floors: imports run downwards only, and no two files import each other."""

import ast
from itertools import chain
from pathlib import Path

import pytest

from detrkit.config.projects import PROJECT_NAMES

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = sorted(path.name for path in (ROOT / "projects").iterdir() if path.is_dir())
# From the ground up. A package imports itself, and packages of lower floors only.
FLOORS = (
    ("detectron2",),
    ("detrex",),
    ("projects",),
    ("align_detr",),
    tuple(name for name in PROJECTS if name != "align_detr"),
    ("detrkit.runtime",),
    ("detrkit.datasets",),
    ("detrkit.config",),
    ("detrkit.weights",),
    ("detrkit.training", "detrkit.analysis"),
    ("detrkit.inference",),
    ("detrkit.experiments", "detrkit.benchmark", "detrkit.reports", "detrkit.serving"),
    ("detrkit.api",),
    ("detrkit.commands",),
)
LEVEL = {package: level for level, packages in enumerate(FLOORS) for package in packages}
# `align_detr.Detector` is imported when it is asked for; `python -m align_detr` is the workbench's command line.
UPWARD = {
    ("projects/align_detr/__init__.py", "detrkit.inference"),
    ("projects/align_detr/__main__.py", "detrkit.commands"),
}


def test_the_list_of_projects_is_complete():
    """Protects a new project from being left out of the wheel, the catalogue and what exported files may name."""
    assert sorted(PROJECT_NAMES) == PROJECTS


def module_of(path: Path) -> str:
    """The dotted name under which a file of the repository is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "embedded" or (parts[0] == "projects" and parts[1] in PROJECTS):
        parts = parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports, inside functions too; relative ones resolved, `from a import b` as "a.b"."""
    module = module_of(path)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names


def package_of(name: str) -> str | None:
    """The package of `LEVEL` that a dotted name lies in; None for other libraries."""
    parts = name.split(".")
    return next((found for end in (2, 1) if (found := ".".join(parts[:end])) in LEVEL), None)


FILES = [
    path
    for folder in ("embedded", "projects", "detrkit")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "configs" not in path.parts
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path):
    """Protects each floor from the ones above it, so that it can be read, tested and replaced without them."""
    own = package_of(module_of(path))
    file = str(path.relative_to(ROOT))
    for name in imports_of(path):
        package = package_of(name)
        if package is None or package == own or own is None or (file, package) in UPWARD:
            continue
        assert LEVEL[package] < LEVEL[own], f"{file} imports {name}, which stands above it or beside it"


def test_no_two_files_import_each_other():
    """Protects a reader from having to hold two files in mind at once, at whatever distance the circle closes."""
    modules = {module_of(path): path for path in FILES}
    edges = {
        module: {name if name in modules else name.rpartition(".")[0] for name in imports_of(path)} - {module}
        for module, path in modules.items()
    }
    pairs = {tuple(sorted((a, b))) for a, targets in edges.items() for b in targets if a in edges.get(b, ())}
    assert not pairs


def test_every_package_has_a_floor():
    """Protects the two tests above from a new folder that they do not know of."""
    folders = chain((ROOT / "embedded").iterdir(), (ROOT / "projects").iterdir(), (ROOT / "detrkit").iterdir())
    packages = {module_of(folder / "x.py").rpartition(".")[0] for folder in folders if any(folder.glob("*.py"))}
    assert packages <= LEVEL.keys() | {"detrkit"}
