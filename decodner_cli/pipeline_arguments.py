"""The command-line arguments that say which pipeline is wanted; imports nothing heavy.

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
    """Tells a folder that is not there from a name on the Hub; a FileNotFoundError where there is none."""
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


def parse_labels(given: Sequence[str], fail: Callable[[str], NoReturn]) -> dict[str, str | None]:
    """Returns label -> description (or None) from what `--labels` was given; `fail` is told what is wrong."""
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
