"""Defines the command line of `pretrain.py`.

In: arguments. Out: the options, files checked to exist and in a fixed order; the `Schedule` that follows from them.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LAST_RATE = 0.02  # the learning rate at the end, as a part of the highest


def parse(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = {"type": _count}
    data = parser.add_argument_group("text")
    data.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE", help=".jsonl or .jsonl.xz files")
    data.add_argument("--text-field", default="text", help="the field of a line that holds the text")
    data.add_argument("--valid-documents", default=200, help="held out, for the loss at the end", type=int)
    data.add_argument("--vocabulary", default=16384, help="tokens", **whole)
    data.add_argument("--tokenizer-characters", default=60_000_000, help="to train the tokenizer on", **whole)
    shape = parser.add_argument_group("model")
    shape.add_argument(
        "--init", type=Path, metavar="DIR", help="go on from this model, with its tokenizer, under a new schedule"
    )
    for name, default in {"hidden": 384, "layers": 12, "heads": 6, "mlp": 1024}.items():
        shape.add_argument(f"--{name}", default=default, **whole)
    shape.add_argument("--max-positions", help="of the configuration (default: --row-tokens)", **whole)
    training = parser.add_argument_group("training")
    training.add_argument("--tokens", default=300_000_000, help="to train on, over all epochs", **whole)
    training.add_argument("--row-tokens", default=1024, **whole)
    training.add_argument("--batch-tokens", default=131_072, help="a step, over all ranks", **whole)
    training.add_argument("--micro-rows", default=64, help="rows a forward, on each rank", **whole)
    training.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    training.add_argument("--learning-rate", type=float, default=2e-3)
    training.add_argument("--warmup", type=float, default=0.02, help="part of the steps")
    training.add_argument("--seed", default=0, type=int)
    training.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the computation")
    training.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    training.add_argument("--max-seconds", type=float, help="stop then, saved; the same command goes on")
    training.add_argument("--save-seconds", type=float, default=300.0, help="between saved states; 0 for none")
    training.add_argument("--log-steps", default=50, **whole)
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, required=True, metavar="DIR", help="the finished model")
    output.add_argument("--work", type=Path, metavar="DIR", help="tokens and states (default: DIR.work)")
    output.add_argument("--save-dtype", choices=("bfloat16", "float32"), default="bfloat16")
    output.add_argument("--max-shard-size", default="15MB")
    options = parser.parse_args(argv)
    options.work = options.work or options.output.with_name(options.output.name + ".work")
    missing = [str(path) for path in options.text if not path.is_file()]
    if missing:
        parser.error(f"argument --text: no such file: {', '.join(missing)}")
    if options.init is not None and not (options.init / "config.json").is_file():
        parser.error(f"argument --init: no such folder, or no model in it: {options.init}")
    if options.init is None and options.hidden % options.heads:
        parser.error(f"argument --heads: {options.heads} heads cannot share --hidden {options.hidden} evenly")
    options.text = sorted(options.text)
    return options


@dataclass(frozen=True)
class Schedule:
    """Sizes of the run in steps; all follow from the arguments, so that a resumed run has the same."""

    steps: int
    warmup: int
    rate: float
    rows: int  # a step, over all ranks

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Schedule":
        """Raises a ValueError where a step is not a whole number of rows, or the run is shorter than a step."""
        rows, rest = divmod(options.batch_tokens, options.row_tokens)
        if rest or not rows:
            raise ValueError(
                f"--batch-tokens {options.batch_tokens} is not a multiple of --row-tokens {options.row_tokens}."
            )
        steps = options.tokens // options.batch_tokens
        if steps < 1:
            raise ValueError(f"--tokens {options.tokens} is less than one step of {options.batch_tokens}.")
        return cls(steps, max(1, round(options.warmup * steps)), options.learning_rate, rows)

    def rate_at(self, step: int) -> float:
        """Learning rate of step `step`: linear up to the end of the warm-up, then a cosine down."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        part = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * part)))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number
