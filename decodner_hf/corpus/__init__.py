"""Annotates files and folders, restartable at any moment, and hands results to other tools."""

from .exports import to_displacy, to_label_studio
from .html_view import ShownDocument, html_page
from .progress import ShownProgress
from .report import Report
from .run import annotate

__all__ = ["Report", "ShownDocument", "ShownProgress", "annotate", "html_page", "to_displacy", "to_label_studio"]
