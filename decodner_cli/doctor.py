"""The command `decodner doctor`: is this installation fit to find entities?

In: parsed arguments. Out: a line per check on standard output; exit code 1 if something is wrong.
Knows nothing of what is checked.
"""

import argparse
import os
from collections.abc import Callable
from typing import NoReturn

from .loading import quick_imports

SUMMARY = "check the installation"
DESCRIPTION = """\
Checks the installation, one line per check: versions, packages that are known not to go together, the device, its
attention against a plain reference, free memory, the default model's known scores, growth on or off.
The exit code is 1 if something is wrong.
"""
OK, WRONG = 0, 1


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    command.add_argument(
        "--model", default=os.environ.get("DECODNER_MODEL"), metavar="DIR_OR_ID",
        help="check this model (default: $DECODNER_MODEL, or the package's own, whose scores are known)",
    )  # fmt: skip
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: an accelerator where there is one)")


def check(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """Has nothing to check."""


def run(options: argparse.Namespace) -> int:
    """Prints a line per check; returns 1 if something is wrong."""
    with quick_imports():
        from decodner_hf.diagnosis import diagnose, is_right
    findings = []
    for finding in diagnose(options.model, options.device):
        print(f"{finding.state:5}  {finding.check:12}  {finding.message}", flush=True)
        findings.append(finding)
    return OK if is_right(findings) else WRONG
