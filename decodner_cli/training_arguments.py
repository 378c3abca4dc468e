"""Defines the command-line arguments of `decodner train`; imports nothing heavy, and so nothing of `decodner_hf`.

In: an argument parser. Out: the parser with the arguments that `run_train` takes.
Knows nothing of data, tokenizers or models.
"""

import argparse
import os
from pathlib import Path
from typing import Any

WORKERS = min(4, os.cpu_count() or 1)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `decodner train`; `decodner_hf.training.train.run_train` takes what it parses."""
    _add_data_arguments(parser.add_argument_group("data"))
    _add_model_arguments(parser.add_argument_group("model and prompt"))
    _add_run_arguments(parser.add_argument_group("training"))


def _add_data_arguments(group: Any) -> None:
    group.add_argument("--train", metavar="PATH", help="a file, a folder with split files, or a Hub id")
    group.add_argument("--train-split", default="train", help="of a folder or a Hub dataset (default: train)")
    group.add_argument(
        "--sources",
        type=Path,
        metavar="FILE",
        help="several sources: a JSON list of objects, docs/training.md has their keys",
    )
    group.add_argument("--label-map", type=Path, metavar="FILE", help="JSON: gold label -> name asked for, or null")
    group.add_argument("--dev", metavar="PATH", help="report span F1 on these examples")
    group.add_argument("--dev-split", default="dev", help="(default: dev)")
    group.add_argument("--dev-label-map", type=Path, metavar="FILE", help="(default: --label-map)")
    group.add_argument(
        "--keep-apart", nargs="+", default=[], metavar="PATH[:SPLIT]",
        help="evaluation sets: drop training examples that share ten words in a row with them",
    )  # fmt: skip
    add_context_arguments(group)
    group.add_argument("--limit", type=int, metavar="N", help="no more than N examples of each source")


def add_context_arguments(group: Any) -> None:
    """Adds what of its document a sentence is read with."""
    group.add_argument(
        "--context", choices=("sentence", "document", "preceding"), default="sentence",
        help="read sentences alone, those of a document joined, or each behind the words before it",
    )  # fmt: skip
    group.add_argument(
        "--context-words", type=int, default=400, metavar="N",
        help="most words of a joined passage, or before a sentence (default: 400)",
    )  # fmt: skip


def _add_model_arguments(group: Any) -> None:
    group.add_argument("--model", required=True, metavar="DIR_OR_ID", help="the decoder to start from")
    group.add_argument("--output", required=True, metavar="DIR", help="the trained model")
    group.add_argument(
        "--labels", nargs="+", metavar="NAME[=DESCRIPTION]", help="fixed labels in prompt order (default: the data's)"
    )
    group.add_argument("--open-types", action="store_true", help="ask each example for other types, in other orders")
    group.add_argument(
        "--type-notes", type=Path, nargs="+", default=[], metavar="FILE",
        help='for --open-types: JSON, type -> {"description": text, "aliases": [names], "parents": [types]}',
    )  # fmt: skip
    group.add_argument("--most-types", type=int, default=20, help="labels of an open prompt, at most (default: 20)")
    group.add_argument("--strangers", type=float, default=0.0, help="part of open prompts with types of other sources")
    group.add_argument("--strange-symbols", type=float, default=0.25, help="part of open prompts with random symbols")
    group.add_argument("--max-span-words", type=int, help="longest candidate (default: the model's)")
    group.add_argument("--answer-cue", help="stands between a span and its label (default: the model's)")
    group.add_argument("--lora-rank", type=int, metavar="R", help="train adapters instead of all weights")
    group.add_argument("--load-in-4bit", action="store_true", help="with --lora-rank: quantize the decoder")
    group.add_argument("--save-dtype", choices=("float32", "bfloat16"), default="float32", help="of the result")
    group.add_argument("--max-shard-size", default="5GB", help="of the result's files (default: 5GB)")
    group.add_argument("--licence", metavar="ID", help="of the result, for its card")


def _add_run_arguments(group: Any) -> None:
    group.add_argument("--epochs", type=int, default=8)
    group.add_argument("--learning-rate", type=float, default=3e-4)
    group.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="(default: adamw)")
    group.add_argument("--weight-decay", type=float, default=0.01)
    group.add_argument("--warmup", type=float, default=0.05, help="part of the steps (default: 0.05)")
    group.add_argument("--row-tokens", type=int, default=16384, help="forest nodes of a row, a multiple of 128")
    group.add_argument("--rows-per-step", type=int, default=1, help="rows that a step accumulates, on each process")
    group.add_argument("--max-steps", type=int)
    group.add_argument("--max-seconds", type=float, help="stop then, with a checkpoint; --resume goes on")
    group.add_argument("--none-weight", type=float, default=1.0, help="weight of spans that are no entity")
    group.add_argument("--loss-divisor", type=float, default=4.0, help="the loss is divided by this x gold spans")
    group.add_argument("--token-noise", type=float, default=0.0, help="part of the tokens blanked out (default: 0)")
    group.add_argument(
        "--dtype", choices=("bfloat16", "float32"),
        help="of computation (default: bfloat16 on a GPU, float32 on the CPU)",
    )  # fmt: skip
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    group.add_argument("--compile", action="store_true", help="torch.compile norms and MLPs too, not attention alone")
    group.add_argument("--cpu", action="store_true", help="train on the CPU")
    group.add_argument("--workers", type=int, default=WORKERS, help=f"processes that make rows (default: {WORKERS})")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--log-steps", type=int, default=20)
    group.add_argument(
        "--evaluate-epochs", type=int, default=1, help="evaluate and save every N epochs; 0: at the end"
    )
    group.add_argument("--keep-best", action="store_true", help="end with the checkpoint that is best on --dev")
    group.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
