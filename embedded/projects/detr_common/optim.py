"""Learning rates by module, for configs."""

from collections.abc import Callable, Mapping
from functools import partial


def lr_factors(**factors: float) -> Callable[[str], float]:
    """`lr_factor_func` of `get_default_optimizer_params`: a module's factor is that of the first keyword its name
    contains, otherwise 1. `lr_factors(backbone=0.1)` trains the backbone at a tenth of the base rate."""
    return partial(_factor, factors)


def _factor(factors: Mapping[str, float], module_name: str) -> float:
    return next((factor for part, factor in factors.items() if part in module_name), 1.0)
