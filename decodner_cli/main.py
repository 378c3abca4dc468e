"""The command line's entry: chooses the command, runs it, and turns errors into one line and an exit code.

In: arguments. Out: an exit code: 0 done, 1 failed, 2 wrong usage, 3 training stopped by --max-seconds,
130 interrupted. Help and messages about wrong arguments import no torch: the commands import `decodner_hf` when run.
Knows nothing of what a command does.
"""

import argparse
import io
import os
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import metadata

from . import annotate, demo, doctor, evaluate, serve, tag, train
from .messages import say

EXPECTED = (ValueError, OSError, RuntimeError, ImportError)  # errors whose message says enough
USAGE, FAILED, INTERRUPTED = 2, 1, 130
COMMANDS = {
    "tag": tag,
    "annotate": annotate,
    "serve": serve,
    "demo": demo,
    "evaluate": evaluate,
    "train": train,
    "doctor": doctor,
}

EXAMPLES = """\
Finds named entities with a causal language model.

examples:
  decodner "Steve Jobs founded Apple."
  decodner "Steve Jobs founded Apple." --labels person "company=a business"
  cat news.txt | decodner --format jsonl
  decodner annotate news.jsonl --out entities.jsonl --model DIR_OR_ID --labels person company
  decodner serve --model DIR_OR_ID
  decodner demo
  decodner evaluate labelled.jsonl --model DIR_OR_ID
  decodner train --model DIR_OR_ID --train data/ --dev data/ --output trained

`decodner TEXT` is short for `decodner tag TEXT`; `decodner annotate --help` and the like say more.
Without --model, and without DECODNER_MODEL in the environment, the package's small English model is used.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line on `argv` (the process's arguments if None) and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # texts are any Unicode, whatever the terminal's locale
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    if sys.stdin is None:  # closed by the process that started this one
        sys.stdin = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    if not arguments and sys.stdin.isatty():
        command_parser().print_help(sys.stderr)
        return USAGE
    try:
        if not arguments or arguments[0] not in (*COMMANDS, "-h", "--help", "--version"):
            _check_command(arguments)
            arguments.insert(0, "tag")
        options = command_parser().parse_args(arguments)
        options.check(options, options.parser.error)
    except SystemExit as stop:  # argparse has printed its message
        return int(stop.code or 0)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        say("interrupted.")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except EXPECTED as error:
        say(f"error: {error}")
        return FAILED


def _check_command(arguments: Sequence[str]) -> None:
    """Refuses a first word that was meant as a command: `decodner tagg TEXT` would tag the word "tagg"."""
    first = arguments[0] if len(arguments) > 1 else ""
    meant = get_close_matches(first.lower(), COMMANDS, n=1, cutoff=0.75)
    if meant:
        rest = " ".join(shlex.quote(argument) for argument in arguments)
        command_parser().error(
            f"there is no command {first!r}: did you mean `decodner {meant[0]}`? "
            f"To find entities in the text {first!r}: decodner tag {rest}"
        )


def _version() -> str:
    try:
        return metadata.version("decodner-hf")
    except metadata.PackageNotFoundError:
        return "(not installed: run from its source)"


def command_parser() -> argparse.ArgumentParser:
    """Returns the parser; what it parses has `run`, `check` and `parser` of the command that was chosen."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("decodner", description=EXAMPLES, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"decodner {_version()}")
    commands = parser.add_subparsers(metavar=f"{{{','.join(COMMANDS)}}}", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, help=module.SUMMARY, description=module.DESCRIPTION, formatter_class=raw, allow_abbrev=False
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, check=module.check, parser=command)
    return parser
