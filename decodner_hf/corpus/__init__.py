"""Annotates files and folders, restartable at any moment: `annotate(inputs, output, pipe)`."""

from .progress import ShownProgress
from .report import Report
from .run import annotate

__all__ = ["Report", "ShownProgress", "annotate"]
