"""Trains a span-scoring model: `train(TrainingOptions(...))`."""

from .options import OptionError, TrainingOptions
from .run import TrainingResult, train
from .sources import TrainingSource

__all__ = ["OptionError", "TrainingOptions", "TrainingResult", "TrainingSource", "train"]
