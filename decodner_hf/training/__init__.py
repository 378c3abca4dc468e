"""Trains a span-scoring model: `train(TrainingOptions(...))`.

The options import nothing heavy; torch and transformers are imported with `train`.
"""

from typing import TYPE_CHECKING

from .options import OptionError, TrainingOptions

if TYPE_CHECKING:
    from .run import TrainingResult, train
    from .sources import TrainingSource

__all__ = ["OptionError", "TrainingOptions", "TrainingResult", "TrainingSource", "train"]


def __getattr__(name: str) -> object:
    """Imports what needs torch when it is asked for (PEP 562)."""
    if name in ("train", "TrainingResult"):
        from . import run

        return getattr(run, name)
    if name == "TrainingSource":
        from .sources import TrainingSource

        return TrainingSource
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
