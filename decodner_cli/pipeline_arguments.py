"""Defines and checks the command-line arguments that choose the pipeline; imports nothing heavy.

In: an argument parser, or what it parsed. Out: the parser with the options of model, labels and thresholds.
Knows nothing of models or files.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

DTYPES = ("auto", "float32", "float16", "bfloat16")
OVERLAPS = ("flat", "nested", "all")
WITH_COMMAS = " (a label with a comma in its name goes into --labels-file)"
LONG_DOCUMENTS = ("window", "error", "truncate")


def check_model_folder(model: str) -> None:
    """Raises a FileNotFoundError for the path of a model that is missing, a ValueError for a file that is none."""
    if Path(model).is_file() and not model.lower().endswith(".gguf"):
        raise ValueError(f"--model {model} is a file: name a folder, a .gguf file, or a model on the Hub.")
    if model.startswith((".", "/", "~")) and not Path(model).exists():
        kind = "file" if model.lower().endswith(".gguf") else "folder"
        raise FileNotFoundError(f"there is no {kind} {model}.")


def add_pipeline_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the options of model, labels and thresholds."""
    options = command.add_argument_group("model and labels")
    options.add_argument(
        "--model", default=os.environ.get("DECODNER_MODEL"), metavar="DIR_OR_ID",
        help="a folder, a .gguf file or a name on the Hub (default: $DECODNER_MODEL, or the package's English model)",
    )  # fmt: skip
    labels = options.add_mutually_exclusive_group()
    labels.add_argument(
        "--labels", nargs="+", metavar="NAME[=DESCRIPTION]", help="entity types (default: those of the model)"
    )
    labels.add_argument(
        "--labels-file", type=Path, metavar="FILE",
        help="entity types: .json (a list of names, or an object name -> description or null), else one a line",
    )  # fmt: skip
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
    options.add_argument(
        "--multi-label", action="store_true", help="with --overlap all: every label that a span reaches, not the best"
    )
    options.add_argument("--all-scores", action="store_true", help="add each entity's score for every label")
    options.add_argument(
        "--max-span-words", type=count, metavar="N", help="longest entity in words (default: the model's)"
    )
    options.add_argument(
        "--long-documents", choices=LONG_DOCUMENTS, default="window",
        help="beyond the model's positions: overlapping windows (default), an error, or truncation",
    )  # fmt: skip
    options.add_argument(
        "--token-budget", type=count, metavar="N",
        help="tokens scored in one pass: less needs less memory (default: by device)",
    )  # fmt: skip
    options.add_argument("--compile", action="store_true", help="compile the model first (a GPU with Triton)")


def check_pipeline_arguments(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """Turns labels and thresholds into mappings, in `options`; `fail` gets the message about what is wrong."""
    if options.labels_file is not None:
        options.labels = _labels_in(options.labels_file, fail)
    else:
        options.labels = parse_labels(options.labels, fail, WITH_COMMAS) if options.labels else None
    if options.multi_label and options.overlap != "all":
        fail("argument --multi-label: it needs --overlap all")
    thresholds = dict(options.label_threshold)
    if len(thresholds) < len(options.label_threshold):
        fail("argument --label-threshold: a label is named twice")
    unknown = [name for name in thresholds if options.labels is not None and name not in options.labels]
    if unknown:
        fail(f"argument --label-threshold: {', '.join(unknown)} not among --labels {' '.join(options.labels)}")
    if thresholds and options.threshold is not None and options.labels is None:
        fail("argument --threshold: with --label-threshold it needs --labels, to know which other labels it is for")
    options.label_threshold = thresholds


def parse_labels(
    given: Sequence[str], fail: Callable[[str], NoReturn], with_commas: str = ""
) -> dict[str, str | None]:
    """Returns label -> description (or None) from the values of `--labels`.

    Args:
        given: the values.
        fail: gets the message about what is wrong.
        with_commas: what this message adds where a name holds a comma.
    """
    labels: dict[str, str | None] = {}
    for item in given:
        name, equals, description = item.partition("=")
        if not name.strip() or (equals and not description.strip()):
            fail(f"argument --labels: {item!r} is not NAME or NAME=DESCRIPTION")
        if "," in name:
            parts = " ".join(part.strip() for part in name.split(",") if part.strip())
            fail(
                f"argument --labels: {name!r} holds a comma; several labels are separated by spaces: --labels {parts}"
                + with_commas
            )
        if name in labels:
            fail(f"argument --labels: {name!r} is named twice")
        labels[name] = description if equals else None
    return labels


def _labels_in(path: Path, fail: Callable[[str], NoReturn]) -> dict[str, str | None]:
    """Returns the labels that a file holds, in its order."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            pairs = [(name.strip(), note.strip() or None) for name, _, note in (line.partition("=") for line in lines)]
        else:
            values = json.loads(text, object_pairs_hook=list)
            pairs = [(pair, None) if isinstance(pair, str) else tuple(pair) for pair in values]
    except (OSError, ValueError, TypeError) as error:
        fail(f"argument --labels-file: {path} cannot be read: {error}")
    labels = dict(pairs)
    right = all(
        isinstance(name, str) and name.strip() and (note is None or (isinstance(note, str) and note.strip()))
        for name, note in labels.items()
    )
    if not labels or not right:
        fail(
            f"argument --labels-file: {path} must hold labels: a JSON list of names, a JSON object from name to "
            "description or null, or a text file with one NAME or NAME=DESCRIPTION a line"
        )
    if len(labels) < len(pairs):
        fail(f"argument --labels-file: {path} names a label twice")
    return labels


def count(text: str) -> int:
    """Parses a whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


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
