"""The command `decodner annotate`: entities in every document of files.

In: parsed arguments. Out: files with entities, a report beside them, progress on standard error; an exit code.
Knows nothing of how files are read or entities are found.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from .loading import load_pipeline, quick_imports
from .messages import say, warn
from .pipeline_arguments import add_pipeline_arguments, check_pipeline_arguments

SUMMARY = "find entities in files"
DESCRIPTION = """\
Finds entities in every document of a file: txt (a document a line), jsonl, csv or parquet.
Writes jsonl or parquet (the input's fields and the entities), conll (a word and its tag a line) or html.
The output appears when it is complete. After an interruption --resume goes on where the run stopped.
"""
OK = 0


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    command.add_argument("input", type=Path, metavar="INPUT", help="a .txt, .jsonl, .csv or .parquet file")
    command.add_argument(
        "--out", type=Path, required=True, metavar="OUTPUT", help="a .jsonl, .parquet, .conll or .html file"
    )
    command.add_argument(
        "--text-column", default="text", metavar="NAME", help="the field with the text (default: text)"
    )
    command.add_argument(
        "--entities-column", default="entities", metavar="NAME", help="the output's new field (default: entities)"
    )
    command.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="at a broken document: stop (default), or skip it"
    )
    start = command.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on with an interrupted run, if there is one")
    start.add_argument("--overwrite", action="store_true", help="replace an output that exists, start from nothing")
    add_pipeline_arguments(command)


def check(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """Checks the arguments together."""
    check_pipeline_arguments(options, fail)
    if options.out.suffix.lower() == ".conll":
        if options.overlap not in (None, "flat"):
            fail(f"argument --overlap: a conll file has one tag a word and cannot hold --overlap {options.overlap}")
        broken = [name for name in options.labels or () if not name.isprintable()]
        if broken:
            fail(f"argument --labels: {broken[0]!r} holds a tab, a line end or the like, which a conll file cannot")
        options.overlap = "flat"


def run(options: argparse.Namespace) -> int:
    """Annotates the files; returns the exit code."""
    with quick_imports():
        from decodner_hf.corpus import ShownProgress
        from decodner_hf.corpus.job import plan_job
        from decodner_hf.corpus.readers import Layout
        from decodner_hf.corpus.run import run_job
    job = plan_job(
        [options.input],
        options.out,
        layout=Layout(options.text_column),
        entities_column=options.entities_column,
        skip_errors=options.on_error == "skip",
        warn=warn,
    )
    journal = job.side_file("journal")
    try:
        report = run_job(
            job,
            lambda: load_pipeline(options),
            resume=options.resume,
            overwrite=options.overwrite,
            progress=ShownProgress(say),
            warn=warn,
        )
    except BaseException:
        if journal.exists():
            say(f"what was done is kept in {journal}: the same command with --resume goes on.")
        raise
    state = "complete already" if report.was_complete else "complete"
    count = f"{report.documents:,} {'document' if report.documents == 1 else 'documents'}"
    say(f"{state}: {count} annotated, results in {options.out}.")
    return OK
