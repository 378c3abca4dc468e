"""Annotating files, restartable at any moment."""
