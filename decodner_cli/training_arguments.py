"""Defines the command-line arguments of `decodner train`; imports nothing heavy, and so nothing of `decodner_hf`.

In: an argument parser. Out: the parser with an argument for each field of `TrainingOptions`, with the same default.
Knows nothing of data, tokenizers or models.
"""

import argparse
import os
import re
from pathlib import Path

WORKERS = min(4, os.cpu_count() or 1)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `decodner train`."""
    _add_data_arguments(parser.add_argument_group("data"))
    _add_model_arguments(parser.add_argument_group("model and prompt"))
    _add_run_arguments(parser.add_argument_group("training"))


def flag_of(option: str) -> str:
    """Returns the flag of an option of `TrainingOptions`: "--row-tokens" for "row_tokens"."""
    return f"--{option.replace('_', '-')}"


def spelled_as_flags(message: str) -> str:
    """Returns a message of `OptionError` with flags in place of the options that it names between backquotes."""
    return re.sub(r"`(\w+)`", lambda match: flag_of(match[1]), message)


def _add_integer(group: argparse._ArgumentGroup, flag: str, default: int | None, text: str) -> None:
    """Adds an integer; its default, if it has one, is added to the help `text`."""
    shown = "" if default is None else " (default: %(default)s)"
    group.add_argument(flag, type=int, default=default, metavar="N", help=f"{text}{shown}")


def _add_number(group: argparse._ArgumentGroup, flag: str, default: float | None, text: str) -> None:
    """Adds a number; its default, if it has one, is added to the help `text`."""
    shown = "" if default is None else " (default: %(default)s)"
    group.add_argument(flag, type=float, default=default, metavar="X", help=f"{text}{shown}")


def _add_data_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--train", metavar="PATH", help="a file, a folder with split files, or a Hub id")
    group.add_argument("--train-split", default="train", help="of a folder or a Hub dataset (default: %(default)s)")
    group.add_argument(
        "--sources", type=Path, metavar="FILE",
        help="several sources: a JSON list of objects, docs/training.md has their keys",
    )  # fmt: skip
    group.add_argument("--label-map", type=Path, metavar="FILE", help="JSON: gold label -> name asked for, or null")
    group.add_argument("--dev", metavar="PATH", help="report span F1 on these examples")
    group.add_argument("--dev-split", default="dev", help="(default: %(default)s)")
    group.add_argument("--dev-label-map", type=Path, metavar="FILE", help="(default: --label-map)")
    group.add_argument(
        "--decontaminate", default=(), nargs="+", metavar="PATH[:SPLIT]",
        help="evaluation sets: drop training examples that share ten words in a row with one of them",
    )  # fmt: skip
    add_context_arguments(group)
    _add_integer(group, "--limit", None, "no more than N examples of each source")


def add_context_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds how much of its document a sentence is read with."""
    group.add_argument(
        "--context", choices=("sentence", "document", "preceding"), default="sentence",
        help="read sentences alone, those of a document joined, or each after the words before it",
    )  # fmt: skip
    _add_integer(group, "--context-words", 400, "most words of a joined passage, or before a sentence")


def _add_model_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model", default=os.environ.get("DECODNER_MODEL"), metavar="DIR_OR_ID",
        help="the decoder, or a model of this package, to start from: a folder, a .gguf file, or a name on the Hub "
        "(default: $DECODNER_MODEL, or the package's own)",
    )  # fmt: skip
    group.add_argument("--output", required=True, metavar="DIR", help="the trained model's folder")
    group.add_argument(
        "--labels", nargs="+", metavar="NAME[=DESCRIPTION]", help="fixed labels in prompt order (default: the data's)"
    )
    group.add_argument("--open-types", action="store_true", help="ask each example for other types, in other orders")
    group.add_argument(
        "--type-notes", default=(), type=Path, nargs="+", metavar="FILE",
        help='for --open-types: JSON, type -> {"description": text, "aliases": [names], "parents": [types]}',
    )  # fmt: skip
    _add_integer(group, "--max-types", 20, "most labels of an open prompt")
    _add_number(
        group, "--cross-source-negatives", 0.0, "part of the open prompts that also ask for types of other sources"
    )
    _add_number(group, "--random-symbols", 0.25, "part of the open prompts with random label symbols")
    _add_integer(group, "--max-span-words", None, "longest candidate (default: the model's)")
    _add_integer(
        group, "--listed-span-words", None,
        "train all spans of up to N words, longer ones near gold spans (default: 8 with --continuation, else all)",
    )  # fmt: skip
    group.add_argument(
        "--continuation", action="store_true", help="train the question whether a longer name begins like a span"
    )
    group.add_argument("--answer-cue", metavar="TEXT", help="between a span and its label (default: the model's)")
    _add_integer(group, "--lora-rank", None, "train adapters of this rank instead of all weights")
    group.add_argument("--load-in-4bit", action="store_true", help="with --lora-rank: quantize the decoder")
    group.add_argument(
        "--save-dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the saved weights (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of the saved files (default: %(default)s)"
    )
    group.add_argument("--licence", metavar="ID", help="of the result, for its card")


def _add_run_arguments(group: argparse._ArgumentGroup) -> None:
    _add_integer(group, "--epochs", 8, "passes over the data")
    _add_number(group, "--learning-rate", 3e-4, "the highest")
    group.add_argument(
        "--optimizer", choices=("adamw", "muon"), default="adamw",
        help="muon: for the matrices of the layers (default: %(default)s)",
    )  # fmt: skip
    _add_number(group, "--weight-decay", 0.01, "of the optimizer")
    _add_number(group, "--warmup", 0.05, "part of the steps in which the learning rate rises")
    _add_integer(group, "--row-tokens", 16384, "nodes per row, a multiple of 128")
    _add_integer(group, "--rows-per-step", 1, "rows that a step accumulates, on each process")
    _add_integer(group, "--max-steps", None, "end training after N steps")
    _add_number(group, "--max-seconds", None, "stop then, with a checkpoint; --resume continues")
    _add_number(group, "--none-weight", 1.0, "weight of spans that are no entity")
    _add_number(group, "--continuation-weight", 0.1, "weight of the loss of --continuation")
    _add_number(group, "--loss-divisor", 4.0, "the loss is divided by this times the number of gold spans")
    _add_number(group, "--token-noise", 0.0, "part of the tokens after the prompt that are masked")
    group.add_argument(
        "--dtype", choices=("bfloat16", "float32"),
        help="of computation (default: bfloat16 on a GPU, float32 on the CPU)",
    )  # fmt: skip
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    group.add_argument("--compile", action="store_true", help="torch.compile norms and MLPs too, not attention alone")
    group.add_argument("--cpu", action="store_true", help="train on the CPU")
    _add_integer(group, "--workers", WORKERS, "processes that make rows")
    _add_integer(group, "--seed", 0, "of everything drawn at random")
    _add_integer(group, "--log-steps", 20, "steps between two lines of the log")
    _add_integer(group, "--evaluate-epochs", 1, "evaluate and save every N epochs; 0: only at the end")
    group.add_argument("--keep-best", action="store_true", help="end with the checkpoint that is best on --dev")
    group.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --output")
