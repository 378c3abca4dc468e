"""The command `decodner train`.

In: parsed arguments. Out: what training writes and prints; an exit code.
Knows nothing of how training works.
"""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from .pipeline_arguments import check_model_folder, parse_labels
from .training_arguments import add_train_arguments, flag_of, spelled_as_flags

if TYPE_CHECKING:
    from decodner_hf.training import TrainingOptions

OK, UNFINISHED = 0, 3
SUMMARY = "train on labelled data"
DESCRIPTION = """\
Trains a decoder to score spans on labelled data, with fixed labels or with open types.
The output folder loads in `decodner --model` and in the pipeline at once; docs/training.md says more.
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_train_arguments(command)


def check(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """Turns labels into a mapping, in `options`; `fail` gets the message about what is wrong."""
    options.labels = parse_labels(options.labels, fail) if options.labels else None


def run(options: argparse.Namespace) -> int:
    """Trains; returns 0 when all steps are done, 3 when --max-seconds stopped it.

    Raises:
        ValueError: options or data that cannot be used.
        OSError: files or a model that cannot be found.
    """
    if options.model is not None:
        check_model_folder(options.model)
    from accelerate import PartialState

    from decodner_hf.default_model import default_model
    from decodner_hf.training import OptionError, train

    options.model = options.model or str(default_model())

    try:
        result = train(training_options(options))
    except OptionError as error:
        raise ValueError(f"{flag_of(error.option)} {spelled_as_flags(error.problem)}") from None
    say = PartialState().print
    say(json.dumps({"output": str(result.output), "steps": result.steps, **result.metrics}))
    if result.is_finished:
        return OK
    say(f"--max-seconds stopped it before step {result.max_steps:,}; --resume continues")
    return UNFINISHED


def training_options(options: argparse.Namespace) -> "TrainingOptions":
    """Returns the options of training that were parsed; an `OptionError` if one cannot be used."""
    from decodner_hf.training import TrainingOptions

    names = TrainingOptions.__dataclass_fields__
    return TrainingOptions(**{name: value for name, value in vars(options).items() if name in names})
