"""torchvision's operators, where they are installed and load: they are the faster ones (see the README)."""

from types import ModuleType


def find_operators() -> ModuleType | None:
    """`torchvision.ops`; None if it is not installed, or is of another build than PyTorch."""
    try:
        import torchvision.ops
    except Exception:  # a wheel of another build of PyTorch may raise anything
        return None
    return torchvision.ops


OPERATORS = find_operators()
