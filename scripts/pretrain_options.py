"""The command line of `pretrain.py`.

In: arguments. Out: the options, files checked to exist and in a fixed order.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path


def parse(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = {"type": int}
    data = parser.add_argument_group("text")
    data.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE", help=".jsonl or .jsonl.xz files")
    data.add_argument("--text-field", default="text", help="the field of a line that holds the text")
    data.add_argument("--valid-documents", default=200, help="held out, for the loss at the end", **whole)
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
    training.add_argument("--seed", default=0, **whole)
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
    if options.init is not None and not options.init.is_dir():
        parser.error(f"argument --init: no such folder: {options.init}")
    options.text = sorted(options.text)
    return options
