"""Choose the source of `detectron2`, `detrex` and `projects.*`: a real installation, else the embedded engine.

Only the order of `sys.path` decides: this module imports nothing and sets no import hook. The root of the embedded
engine comes last, so an installed package always hides the embedded package of the same name.
"""

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

ENV_VAR = "ALIGN_DETR_PLATFORM"
ENGINE_PACKAGES = ("detectron2", "detrex")
DETECTORS = ("projects.dino", "projects.h_deformable_detr", "projects.dab_detr", "projects.conditional_detr")

_PACKAGE = Path(__file__).resolve().parent
# In a wheel the engine is inside the package, in a checkout it is next to `projects/`.
EMBEDDED_ROOT = next(p for p in (_PACKAGE / "embedded", _PACKAGE.parents[1] / "embedded") if p.is_dir())


def _origin(name: str) -> Path | None:
    """Return the folder of the package `name` that `import` would find now; None without a regular package."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # a parent of a dotted name is missing
        return None
    return Path(spec.origin).resolve().parent if spec is not None and spec.origin else None


def _is_embedded(folder: Path) -> bool:
    return folder.is_relative_to(EMBEDDED_ROOT)


def resolve() -> None:
    """Order `sys.path` according to `$ALIGN_DETR_PLATFORM`: "embedded", "upstream" or unset.

    Raises:
        ValueError: the variable has another value.
        ImportError: "upstream" is set and detectron2 or detrex is not installed, or "embedded" is set and a real one
            was imported before.
    """
    choice = os.environ.get(ENV_VAR, "")
    if choice not in ("", "embedded", "upstream"):
        raise ValueError(f"{ENV_VAR}={choice!r}: set it to 'embedded' or 'upstream', or unset it")
    root = str(EMBEDDED_ROOT)
    sys.path[:] = [entry for entry in sys.path if entry != root]
    if EMBEDDED_ROOT.parent != _PACKAGE and str(EMBEDDED_ROOT.parent) not in sys.path:
        sys.path.append(str(EMBEDDED_ROOT.parent))  # in a checkout `detrkit` is next to `projects/`

    if choice == "embedded":
        loaded = [n for n in ENGINE_PACKAGES if n in sys.modules and not _is_embedded(_origin(n))]
        if loaded:
            raise ImportError(
                f"{ENV_VAR}=embedded, but the installed {' and '.join(loaded)} was imported before align_detr: "
                "import align_detr first"
            )
        sys.path.insert(0, root)
        return

    real = {name: _origin(name) for name in ENGINE_PACKAGES}
    missing = [name for name, folder in real.items() if folder is None or _is_embedded(folder)]
    if choice == "upstream" and missing:
        raise ImportError(
            f"{ENV_VAR}=upstream, but {' and '.join(missing)} cannot be imported: install it, "
            f"or unset {ENV_VAR} to use the embedded engine"
        )
    if "detrex" not in missing:
        checkout = real["detrex"].parent
        if (checkout / "projects").is_dir() and str(checkout) not in sys.path:
            sys.path.append(str(checkout))
    sys.path.append(root)


def is_upstream() -> bool:
    """Return whether both detectron2 and detrex are real installations."""
    return not any(_is_embedded(_origin(name)) for name in ENGINE_PACKAGES)


def describe() -> str:
    """Return one line for the log: the source and version of each package."""

    def source(name: str, module: str) -> str:
        folder = _origin(module)
        if folder is None:
            return f"{name} missing"
        if _is_embedded(folder):
            return f"{name} embedded"
        try:
            return f"{name} {importlib.metadata.version(name)} ({folder})"
        except importlib.metadata.PackageNotFoundError:
            return f"{name} ({folder})"

    packages = [source(name, name) for name in ENGINE_PACKAGES]
    packages += [source(name, f"{name}.modeling") for name in DETECTORS]
    return "platform: " + ", ".join(packages)
