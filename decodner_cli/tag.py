"""The command `decodner tag`, short `decodner TEXT`: entities in texts given as arguments or in standard input.

In: parsed arguments. Out: a table, JSON or HTML on standard output; an exit code.
Knows nothing of how entities are found.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .loading import load_pipeline, quick_imports
from .messages import say
from .pipeline_arguments import add_pipeline_arguments, check_pipeline_arguments

if TYPE_CHECKING:
    from decodner_hf.corpus.records import Entities, Record

SUMMARY = "find entities in texts"
DESCRIPTION = """\
Finds entities in texts given as arguments, or in standard input, each line of which is a document.
Give the texts before --labels, or put -- between the labels and the texts.
"""
FORMATS = ("table", "json", "jsonl", "html")
OK = 0


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    command.add_argument("texts", nargs="*", metavar="TEXT", help="a document; without any, standard input is read")
    command.add_argument("--format", choices=FORMATS, default="table", help="of the output (default: table)")
    add_pipeline_arguments(command)


def check(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """Checks the arguments together."""
    check_pipeline_arguments(options, fail)


def run(options: argparse.Namespace) -> int:
    """Prints the entities of every text; returns the exit code."""
    typed = not options.texts and sys.stdin.isatty()
    if typed:
        say("reading standard input, a document a line, up to Ctrl-D. (Texts go before --labels, or after a --.)")
    with quick_imports():
        from decodner_hf.corpus.streaming import annotate_records
    records = _given(options.texts) if options.texts else _from_standard_input()
    first = next(records, None)
    if first is None:
        say("standard input was empty. (Texts go before --labels, or after a --.)")
        return OK
    pipe = load_pipeline(options)
    # Each typed line is answered before the next one is read.
    groups: Iterable[Iterable[Record]] = (
        ([record] for record in chain([first], records)) if typed else [chain([first], records)]
    )
    results = (_answered(*result) for group in groups for result in annotate_records(pipe, iter(group)))
    _print(results, options.format, numbered=len(options.texts) != 1)
    return OK


def _answered(record: "Record", outcome: "Entities | ValueError") -> "tuple[Record, Entities]":
    if isinstance(outcome, ValueError):
        raise ValueError(f"{record.place}: {outcome}") from outcome
    return record, outcome


def _print(results: "Iterator[tuple[Record, Entities]]", form: str, numbered: bool) -> None:
    from decodner_hf.corpus.html_view import ShownDocument, html_page
    from decodner_hf.corpus.rendering import printable, table

    if form == "table":
        for number, (record, entities) in enumerate(results):
            if numbered:
                print(f"{chr(10) if number else ''}# {record.place}: {printable(record.text[:100])}")
            print(table(entities) or "no entities\n", end="", flush=True)
    elif form == "jsonl":
        for record, entities in results:
            print(json.dumps({"text": record.text, "entities": entities}, ensure_ascii=False), flush=True)
    elif form == "json":
        documents = [{"text": record.text, "entities": entities} for record, entities in results]
        print(json.dumps(documents, ensure_ascii=False, indent=2), flush=True)
    else:
        shown = (ShownDocument(record.place, record.text, entities) for record, entities in results)
        print("".join(html_page(shown)), end="", flush=True)


def _given(texts: Sequence[str]) -> "Iterator[Record]":
    from decodner_hf.corpus.records import Record

    for number, text in enumerate(texts, 1):
        if len(text) < 1000 and "\n" not in text and Path(text).is_file():
            say(f"note: {text!r} is read as a text, not as the file of that name; for files: decodner annotate.")
        yield Record(f"text {number}", text, {})


def _from_standard_input() -> "Iterator[Record]":
    from decodner_hf.corpus.readers import decoded_lines
    from decodner_hf.corpus.records import Record

    for place, line, problem in decoded_lines(sys.stdin.buffer):
        if problem is not None:
            raise ValueError(f"standard input, {place}: {problem}")
        yield Record(place, line, {})
