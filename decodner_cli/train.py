"""The command `decodner train`.

In: parsed arguments. Out: what training writes and prints; an exit code.
Knows nothing of how training works.
"""

import argparse
from collections.abc import Callable
from typing import NoReturn

from .pipeline_arguments import check_model_folder
from .training_arguments import add_train_arguments

SUMMARY = "train on labelled data"
DESCRIPTION = """\
Trains a decoder to score spans on labelled data, with fixed labels or with open types.
The output folder loads in `decodner --model` and in the pipeline at once; docs/training.md says more.
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_train_arguments(command)


def check(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """Checks nothing that argparse has not checked."""


def run(options: argparse.Namespace) -> int:
    """Trains; returns 0 when all steps are done, 3 when --max-seconds stopped it."""
    check_model_folder(options.model)
    from decodner_hf.training.train import run_train

    return run_train(options)
