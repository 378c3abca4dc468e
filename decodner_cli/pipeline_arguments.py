"""Defines and checks the command-line arguments that choose the pipeline; imports nothing heavy.

In: an argument parser, or what it parsed. Out: the parser with the options of model, labels and thresholds.
Knows nothing of models or files.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

DTYPES = ("auto", "float32", "float16", "bfloat16")
OVERLAPS = ("flat", "nested", "all")


def check_model_folder(model: str) -> None:
    """Raises a FileNotFoundError if `model` is the path of a folder, and not a name on the Hub, and is missing."""
    if model.startswith((".", "/", "~")) and not Path(model).exists():
        raise FileNotFoundError(f"there is no folder {model}.")


def add_pipeline_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the options of model, labels and thresholds."""
    options = command.add_argument_group("model and labels")
    options.add_argument(
        "--model", default=os.environ.get("DECODNER_MODEL"), metavar="DIR_OR_ID",
        help="a folder, or a name on the Hub (default: $DECODNER_MODEL, or the package's own small English model)",
    )  # fmt: skip
    options.add_argument(
        "--labels", nargs="+", metavar="NAME[=DESCRIPTION]", help="entity types (default: those of the model)"
    )
    options.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: an accelerator where there is one)")
    options.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: as in config.json)")
    options.add_argument(
        "--threshold", type=_probability, metavar="P", help="lowest score reported, 0 to 1 (default: the model's)"
    )
    options.add_argument(
        "--label-threshold", type=_label_threshold, action="append", default=[], metavar="NAME=P",
        help="the threshold of one label; may be repeated",
    )  # fmt: skip
    options.add_argument(
        "--overlap",
        choices=OVERLAPS,
        help="flat: entities never overlap; nested: none cross; all (default: the model's)",
    )


def check_pipeline_arguments(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """Turns labels and thresholds into mappings, in `options`; `fail` gets the message about what is wrong."""
    options.labels = parse_labels(options.labels, fail) if options.labels else None
    thresholds = dict(options.label_threshold)
    if len(thresholds) < len(options.label_threshold):
        fail("argument --label-threshold: a label is named twice")
    unknown = [name for name in thresholds if options.labels is not None and name not in options.labels]
    if unknown:
        fail(f"argument --label-threshold: {', '.join(unknown)} not among --labels {' '.join(options.labels)}")
    if thresholds and options.threshold is not None and options.labels is None:
        fail("argument --threshold: with --label-threshold it needs --labels, to know which other labels it is for")
    options.label_threshold = thresholds


def parse_labels(given: Sequence[str], fail: Callable[[str], NoReturn]) -> dict[str, str | None]:
    """Returns label -> description (or None) from the values of `--labels`; `fail` gets the message."""
    labels: dict[str, str | None] = {}
    for item in given:
        name, equals, description = item.partition("=")
        if not name.strip() or (equals and not description.strip()):
            fail(f"argument --labels: {item!r} is not NAME or NAME=DESCRIPTION")
        if name in labels:
            fail(f"argument --labels: {name!r} is named twice")
        labels[name] = description if equals else None
    return labels


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _label_threshold(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=P, for example Person=0.3")
    return name, _probability(value)
