"""Checks single numbers that a caller gives; each message says what was given and what is allowed.

Knows nothing of what the numbers mean.
"""

from numbers import Real
from typing import TypeGuard


def is_count(value: object, least: int = 1) -> TypeGuard[int]:
    """Returns whether `value` is an integer (a bool is none) of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raises a ValueError unless `value` is an integer (a bool is none) of at least `least`."""
    if not is_count(value, least):
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}.")


def check_number(name: str, value: object, least: float, most: float = float("inf")) -> None:
    """Raises a ValueError unless `value` is a number (a bool is none) from `least` to `most`, both included."""
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= float(value) <= most:
        allowed = f"from {least:g} to {most:g}" if most < float("inf") else f"of at least {least:g}"
        raise ValueError(f"{name} must be a number {allowed}, not {value!r}.")
