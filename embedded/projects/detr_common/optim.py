"""Learning-rate factors by module, for configs."""

from collections.abc import Callable, Mapping
from functools import partial


def lr_factors(**factors: float) -> Callable[[str], float]:
    """Return an `lr_factor_func` for `get_default_optimizer_params`.

    A module gets the factor of the first keyword that its name contains, else 1. Example: `lr_factors(backbone=0.1)`
    trains the backbone at a tenth of the base rate.
    """
    return partial(_factor, factors)


def _factor(factors: Mapping[str, float], module_name: str) -> float:
    return next((factor for part, factor in factors.items() if part in module_name), 1.0)
