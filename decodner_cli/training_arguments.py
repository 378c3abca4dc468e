"""Defines the command-line arguments of `decodner train`; imports nothing heavy, and so nothing of `decodner_hf`.

In: an argument parser. Out: the parser with an argument for each field of `TrainingOptions`, with the same default.
Knows nothing of data, tokenizers or models.
"""

import argparse
import os
import re
from pathlib import Path
from typing import Any

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


def _add_data_arguments(group: Any) -> None:
    group.add_argument("--train", metavar="PATH", help="a file, a folder with split files, or a Hub id")
    group.add_argument("--train-split", default="train", help="of a folder or a Hub dataset (default: %(default)s)")
    group.add_argument(
        "--sources", type=Path, metavar="FILE", help="several sources, in a JSON list (docs/training.md)"
    )
    group.add_argument("--label-map", type=Path, metavar="FILE", help="JSON: gold label -> name asked for, or null")
    group.add_argument("--dev", metavar="PATH", help="report span F1 on these examples")
    group.add_argument("--dev-split", default="dev", help="(default: %(default)s)")
    group.add_argument("--dev-label-map", type=Path, metavar="FILE", help="(default: --label-map)")
    group.add_argument(
        "--decontaminate", default=(), nargs="+", metavar="PATH[:SPLIT]",
        help="evaluation sets: drop training examples that share ten words in a row with one of them",
    )  # fmt: skip
    add_context_arguments(group)
    group.add_argument("--limit", type=int, metavar="N", help="no more than N examples of each source")


def add_context_arguments(group: Any) -> None:
    """Adds how much of its document a sentence is read with."""
    group.add_argument(
        "--context",
        choices=("sentence", "document", "preceding"),
        default="sentence",
        help="read sentences alone, those of a document joined, or each after the words before it",
    )
    group.add_argument(
        "--context-words", default=400, type=int, metavar="N",
        help="most words of a joined passage, or before a sentence (default: %(default)s)",
    )  # fmt: skip


def _add_model_arguments(group: Any) -> None:
    group.add_argument(
        "--model", required=True, metavar="DIR_OR_ID", help="the decoder to start from, or a model of this package"
    )
    group.add_argument("--output", required=True, metavar="DIR", help="the trained model's folder")
    group.add_argument(
        "--labels", nargs="+", metavar="NAME[=DESCRIPTION]",
        help="fixed labels in prompt order (default: the data's)",
    )  # fmt: skip
    group.add_argument("--open-types", action="store_true", help="ask each example for other types, in other orders")
    group.add_argument(
        "--type-notes", default=(), type=Path, nargs="+", metavar="FILE",
        help='for --open-types: JSON, type -> {"description": text, "aliases": [names], "parents": [types]}',
    )  # fmt: skip
    group.add_argument(
        "--max-types", default=20, type=int, metavar="N", help="most labels of an open prompt (default: %(default)s)"
    )
    group.add_argument(
        "--cross-source-negatives", default=0.0, type=float, metavar="PART",
        help="part of the open prompts that also ask for types of other sources (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--random-symbols", default=0.25, type=float, metavar="PART",
        help="part of the open prompts with random label symbols (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--max-span-words", type=int, metavar="N", help="longest candidate (default: the model's)")
    group.add_argument("--answer-cue", metavar="TEXT", help="between a span and its label (default: the model's)")
    group.add_argument("--lora-rank", type=int, metavar="R", help="train adapters instead of all weights")
    group.add_argument("--load-in-4bit", action="store_true", help="with --lora-rank: quantize the decoder")
    group.add_argument(
        "--save-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the saved weights (default: %(default)s)",
    )
    group.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of the saved files (default: %(default)s)"
    )
    group.add_argument("--licence", metavar="ID", help="of the result, for its card")


def _add_run_arguments(group: Any) -> None:
    group.add_argument(
        "--epochs", default=8, type=int, metavar="N", help="passes over the data (default: %(default)s)"
    )
    group.add_argument(
        "--learning-rate", default=3e-4, type=float, metavar="RATE", help="the highest (default: %(default)s)"
    )
    group.add_argument(
        "--optimizer",
        choices=("adamw", "muon"),
        default="adamw",
        help="muon: for the matrices of the layers (default: %(default)s)",
    )
    group.add_argument("--weight-decay", default=0.01, type=float, metavar="RATE", help="(default: %(default)s)")
    group.add_argument(
        "--warmup", default=0.05, type=float, metavar="PART", help="part of the steps (default: %(default)s)"
    )
    group.add_argument(
        "--row-tokens",
        default=16384,
        type=int,
        metavar="N",
        help="nodes of a row, a multiple of 128 (default: %(default)s)",
    )
    group.add_argument(
        "--rows-per-step", default=1, type=int, metavar="N",
        help="rows that a step accumulates, on each process (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--max-steps", type=int, metavar="N", help="end training then")
    group.add_argument(
        "--max-seconds", type=float, metavar="S", help="stop then, with a checkpoint; --resume continues"
    )
    group.add_argument(
        "--none-weight",
        default=1.0,
        type=float,
        metavar="W",
        help="of spans that are no entity (default: %(default)s)",
    )
    group.add_argument(
        "--loss-divisor", default=4.0, type=float, metavar="X",
        help="the loss is divided by this times the gold spans (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--token-noise",
        default=0.0,
        type=float,
        metavar="PART",
        help="part of the tokens masked (default: %(default)s)",
    )
    group.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="of computation (default: bfloat16 on a GPU, float32 on the CPU)",
    )
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    group.add_argument("--compile", action="store_true", help="torch.compile norms and MLPs too, not attention alone")
    group.add_argument("--cpu", action="store_true", help="train on the CPU")
    group.add_argument(
        "--workers", default=WORKERS, type=int, metavar="N", help="processes that make rows (default: %(default)s)"
    )
    group.add_argument(
        "--seed", default=0, type=int, metavar="N", help="of everything drawn at random (default: %(default)s)"
    )
    group.add_argument(
        "--log-steps", default=20, type=int, metavar="N", help="steps between lines of the log (default: %(default)s)"
    )
    group.add_argument(
        "--evaluate-epochs", default=1, type=int, metavar="N",
        help="evaluate and save every N epochs; 0: at the end (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--keep-best", action="store_true", help="end with the checkpoint that is best on --dev")
    group.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --output")
