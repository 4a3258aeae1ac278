"""Scores of detections that a user gives."""

from numbers import Real


def checked_score(value: float, name: str) -> float:
    """Return a score threshold.

    Args:
        name: how the user gave it, for the message.

    Raises:
        ValueError: it is not a number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: expected a score from 0 to 1")
    return float(value)
