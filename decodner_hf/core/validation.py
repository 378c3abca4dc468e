"""Checks single values that a caller gives; each message says what was given and what is allowed.

Knows nothing of what the values mean.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import TypeGuard

import torch


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


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raises a ValueError unless `value` is one of the `allowed` strings; names the one it is like."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, not {value!r}.{did_you_mean(value, allowed)}")


def near_miss(name: object, allowed: Iterable[str], cutoff: float = 0.7) -> str | None:
    """Returns the one of the `allowed` names that is most like `name`, or None where none is like it (0 to 1)."""
    close = get_close_matches(str(name), list(allowed), n=1, cutoff=cutoff)
    return close[0] if close else None


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """Returns a question to put after a message about an unknown `name`; empty where no allowed name is like it."""
    close = near_miss(name, allowed)
    return "" if close is None else f" Did you mean {close!r}?"


def check_device(device: object) -> None:
    """Raises a ValueError, of one line, for a device that torch does not know or does not find here."""
    if isinstance(device, str):
        try:
            device = torch.device(device)
        except RuntimeError:
            raise ValueError(f'device must be "cpu", "cuda", "cuda:1", "mps" or the like, not {device!r}.') from None
    if isinstance(device, torch.device) and device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f'device="{device}": this machine has no GPU that torch can use; leave it out, or pass "cpu".'
        )


def check_dtype(dtype: object) -> torch.dtype | None:
    """Returns the dtype that is asked for, or None for that of the weights; raises a ValueError for another string."""
    if not isinstance(dtype, str):
        return dtype if isinstance(dtype, torch.dtype) else None
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if dtype != "auto" and not isinstance(found, torch.dtype):
        raise ValueError(
            f'dtype must be "auto", a torch.dtype or its name ("float32", "float16", "bfloat16"), not {dtype!r}.'
        )
    return found if dtype != "auto" else None
