"""Runs the code blocks of README and documentation, and writes what they print into the pages.

A block of `python` or `bash` runs; a block of `text` directly after it is what it prints. Blocks with a title
(```csv title="news.csv") are written to that file first. A line `<!-- not run: REASON -->` before a block says why it
does not run: it needs a GPU, a server, data, or minutes. Every page runs in a folder of its own with the files of
tests/support/page_files; its Python blocks share their names, as one session. `pip install` lines do nothing: .ci/run
installs.
In: pages. Out: pages with the outputs of today's default model; `--check` only tells what would change.
"""

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILES = ROOT / "tests" / "support" / "page_files"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r"^```(?P<kind>\w*)(?: title=\"(?P<title>[^\"\n]+)\")?\n(?P<code>.*?)^```$"
    r"(?:\n\s*?^```text\n(?P<shown>.*?)^```$)?",
    flags=re.MULTILINE | re.DOTALL,
)
RUN = ("python", "bash")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        kind: its language: "python", "bash", "text", ...
        code: what it holds.
        title: the file that it is written to, None for none.
        reason: why it is not run, None where it is.
        shown: what the page says that it prints, None where it says nothing.
        start: where in the page that begins.
        end: and where it ends.
    """

    kind: str
    code: str
    title: str | None
    reason: str | None
    shown: str | None
    start: int
    end: int

    @property
    def runs(self) -> bool:
        """Whether it is code that is run."""
        return self.kind in RUN and self.reason is None


def blocks_of(page: str) -> list[Block]:
    """Returns the fenced blocks of a page, outputs with the code that they belong to."""
    return [
        Block(m["kind"], m["code"], m["title"], m["reason"], m["shown"], m.start("shown"), m.end("shown"))
        for m in BLOCK.finditer(page)
    ]


def run_blocks(blocks: list[Block]) -> Iterator[tuple[Block, str]]:
    """Yields each block that runs with what it prints, run in a new folder with the example files.

    Raises:
        RuntimeError: a command that fails.
    """
    names: dict[str, Any] = {"__name__": "page"}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        place, tools = Path(folder) / "page", Path(folder) / "tools"
        shutil.copytree(FILES, place)
        tools.mkdir()
        _tool(tools / "decodner", f'exec "{sys.executable}" -m decodner_cli "$@"')
        _tool(tools / "pip", "exit 0")
        try:
            os.chdir(place)
            for block in blocks:
                if block.title is not None:
                    Path(block.title).write_text(block.code, encoding="utf-8")
                if block.runs:
                    yield block, _printed(block, names, place, tools)
        finally:
            os.chdir(before)


def _tool(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)


def _printed(block: Block, names: dict[str, Any], place: Path, tools: Path) -> str:
    if block.kind == "python":
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block.code, "a page's block", "exec"), names)
        return printed.getvalue()
    paths = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "DECODNER_MODEL"} | paths
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        capture_output=True, text=True, encoding="utf-8", cwd=place, env=environment, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise RuntimeError(f"{block.code}\nended with {ended.returncode}:\n{ended.stderr}")
    return ended.stdout


def refreshed(page: str) -> str:
    """Returns the page with what its examples print now."""
    found = list(run_blocks(blocks_of(page)))
    for block, printed in reversed(found):
        if block.shown is not None:
            page = page[: block.start] + printed.rstrip() + "\n" + page[block.end :]
    return page


def main() -> int:
    """Parses the flags and runs; with --check returns 1 where something would change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="all if left out")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if something would change")
    options = parser.parse_args()
    changed = []
    for path in options.pages or PAGES:
        before = path.read_text(encoding="utf-8")
        after = refreshed(before)
        if after != before:
            changed.append(path)
            if not options.check:
                path.write_text(after, encoding="utf-8")
    print("\n".join(f"changed: {path}" for path in changed) or "nothing to change")
    return int(options.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
