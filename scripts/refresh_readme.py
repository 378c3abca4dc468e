"""Runs the README's examples and writes what they print into it.

An example is a block of Python, or of shell with a `decodner "..."` command, directly followed by a block of text.
In: README.md. Out: README.md with the outputs of today's default model; `--check` only tells what would change.
"""

import argparse
import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decodner_cli import main as cli

README = Path(__file__).parents[1] / "README.md"
EXAMPLE = re.compile(r"```(?P<kind>python|bash)\n(?P<code>[^`]*)```\s*```text\n(?P<shown>[^`]*)```")
COMMAND = re.compile(r'\bdecodner (".*)$', flags=re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """Code, what the README says that it prints, and where in the README that stands."""

    kind: str
    code: str
    shown: str
    start: int
    end: int


def examples(readme: str) -> list[Example]:
    """Finds the examples that have an output."""
    return [
        Example(match["kind"], match["code"], match["shown"], match.start("shown"), match.end("shown"))
        for match in EXAMPLE.finditer(readme)
    ]


def outputs(found: list[Example]) -> Iterator[str]:
    """Yields what each example prints; the Python ones share their names, as one session."""
    names: dict[str, Any] = {}
    for example in found:
        if example.kind == "bash":
            yield _command_output(example.code)
        else:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(example.code, "README.md", "exec"), names)
            yield printed.getvalue()


def _command_output(code: str) -> str:
    """Runs the first `decodner "..."` command of a block; RuntimeError with its message where it fails."""
    command = COMMAND.search(code)
    if command is None:
        raise ValueError(f'a block of shell with an output must hold a command that begins with decodner ":\n{code}')
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()) as said:
        failed = cli.main(shlex.split(command[1]))
    if failed:
        raise RuntimeError(f"{command[0]}\n{said.getvalue()}")
    return printed.getvalue()


def refreshed(readme: str) -> str:
    """Returns the README with what its examples print now."""
    found = examples(readme)
    for example, printed in reversed(list(zip(found, outputs(found), strict=True))):
        readme = readme[: example.start] + printed.rstrip() + "\n" + readme[example.end :]
    return readme


def main() -> int:
    """Parses the flags and runs; with --check returns 1 where something would change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if something would change")
    options = parser.parse_args()
    before = options.readme.read_text(encoding="utf-8")
    after = refreshed(before)
    if not options.check:
        options.readme.write_text(after, encoding="utf-8")
    print("nothing to change" if after == before else "changed")
    return int(options.check and after != before)


if __name__ == "__main__":
    sys.exit(main())
