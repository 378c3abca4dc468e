"""The command line: `decodner TEXT` and `decodner annotate FILE`.

In: arguments. Out: entities on standard output or in a file, messages on standard error, an exit code: 0 done,
1 failed, 2 wrong usage, 3 training stopped by --max-seconds, 130 interrupted. torch and transformers are imported once
the arguments are known to be right.
Knows nothing of how entities are found: it calls the pipeline.
"""

import argparse
import gc
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from decodner_hf.corpus.annotate import Job, Pipe, annotate, exclusive, prepare, stream
from decodner_hf.corpus.files import Record, decoded_lines
from decodner_hf.corpus.rendering import html_page, printable, table
from decodner_hf.default_model import default_model

from .pipeline_arguments import add_pipeline_arguments, check_model_folder, parse_labels
from .training_arguments import add_train_arguments

EXPECTED = (ValueError, OSError, RuntimeError, ImportError)  # errors whose message says enough
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
COMMANDS = ("tag", "annotate", "train")
FORMATS = ("table", "json", "jsonl", "html")

EXAMPLES = """\
Finds named entities with a causal language model.

examples:
  decodner "Steve Jobs founded Apple."
  decodner "Steve Jobs founded Apple." --labels person "company=a business"
  cat news.txt | decodner --format jsonl
  decodner annotate news.jsonl --out entities.jsonl --model DIR_OR_ID --labels person company
  decodner train --model DIR_OR_ID --train data/ --dev data/ --output trained

`decodner TEXT` is short for `decodner tag TEXT`; `decodner annotate --help` and the like say more.
Without --model, and without DECODNER_MODEL in the environment, the small English model of the package is used.
"""
TAG = """\
Finds entities in texts given as arguments, or in standard input, each line of which is a document.
Give the texts before --labels, or put -- between the labels and the texts.
"""
ANNOTATE = """\
Finds entities in every document of a file: txt (a document a line), jsonl, csv or parquet.
Writes jsonl or parquet (the input's fields and the entities), conll (a word and its tag a line) or html.
The output appears when it is complete. After an interruption --resume goes on where the run stopped.
"""
TRAIN = """\
Trains a decoder to score spans on labelled data, with fixed labels or with open types.
The output folder loads in `decodner --model` and in the pipeline at once; docs/training.md says more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line on `argv` (the process's arguments if None) and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # texts are any Unicode, whatever the terminal's locale
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    if sys.stdin is None:  # closed by whoever started this
        sys.stdin = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    if not arguments and sys.stdin.isatty():
        _parser().print_help(sys.stderr)
        return USAGE
    if not arguments or arguments[0] not in (*COMMANDS, "-h", "--help"):
        arguments.insert(0, "tag")
    try:
        options = _parse(arguments)
    except SystemExit as stop:  # argparse has printed its message
        return int(stop.code or 0)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        _say("interrupted.")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except EXPECTED as error:
        _say(f"error: {error}")
        return FAILED


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("decodner", description=EXAMPLES, formatter_class=raw, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="{tag,annotate,train}", required=True)
    tag = commands.add_parser("tag", help="find entities in texts", description=TAG, formatter_class=raw)
    tag.add_argument("texts", nargs="*", metavar="TEXT", help="a document; without any, standard input is read")
    tag.add_argument("--format", choices=FORMATS, default="table", help="of the output (default: table)")
    tag.set_defaults(run=_tag, parser=tag)
    many = commands.add_parser("annotate", help="find entities in a file", description=ANNOTATE, formatter_class=raw)
    many.add_argument("input", type=Path, metavar="INPUT", help="a .txt, .jsonl, .csv or .parquet file")
    many.add_argument(
        "--out", type=Path, required=True, metavar="OUTPUT", help="a .jsonl, .parquet, .conll or .html file"
    )
    many.add_argument("--text-column", default="text", metavar="NAME", help="the field with the text (default: text)")
    many.add_argument(
        "--entities-column", default="entities", metavar="NAME", help="the output's new field (default: entities)"
    )
    many.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="at a broken document: stop (default), or skip it"
    )
    start = many.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on with an interrupted run, if there is one")
    start.add_argument("--overwrite", action="store_true", help="replace an output that exists, start from nothing")
    many.set_defaults(run=_annotate, parser=many)
    for command in (tag, many):
        add_pipeline_arguments(command)
    train = commands.add_parser("train", help="train on labelled data", description=TRAIN, formatter_class=raw)
    add_train_arguments(train)
    train.set_defaults(run=_train, parser=train)
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    options = _parser().parse_args(arguments)
    if options.run is _train:
        return options
    fail = options.parser.error
    options.labels = parse_labels(options.labels, fail) if options.labels else None
    thresholds = dict(options.label_threshold)
    if len(thresholds) < len(options.label_threshold):
        fail("argument --label-threshold: a label is named twice")
    strangers = [name for name in thresholds if options.labels is not None and name not in options.labels]
    if strangers:
        fail(f"argument --label-threshold: {', '.join(strangers)} not among --labels {' '.join(options.labels)}")
    if thresholds and options.threshold is not None and options.labels is None:
        fail("argument --threshold: with --label-threshold it needs --labels, to know which other labels it is for")
    options.label_threshold = thresholds
    if options.run is _annotate and options.out.suffix.lower() == ".conll":
        if options.overlap not in (None, "flat"):
            fail(f"argument --overlap: a conll file has one tag a word and cannot hold --overlap {options.overlap}")
        broken = [name for name in options.labels or () if not name.isprintable()]
        if broken:
            fail(f"argument --labels: {broken[0]!r} holds a tab, a line end or the like, which a conll file cannot")
        options.overlap = "flat"
    return options


def load_pipeline(options: argparse.Namespace) -> Pipe:
    """Loads the model that the options name, or the package's own.

    Raises:
        ValueError: options the pipeline refuses.
        OSError: a model that cannot be found.
        RuntimeError: a model whose files are broken.
    """
    model = options.model or str(default_model())
    check_model_folder(model)
    gc.disable()  # thousands of modules are about to be loaded and nothing is garbage: a sixth of the time
    try:
        return _load(model, options)
    finally:
        gc.enable()


def _load(model: str, options: argparse.Namespace) -> Pipe:
    """The one place that imports torch and transformers, training aside."""
    import torch
    from transformers import pipeline
    from transformers.utils import logging

    from decodner_hf.core.checkpoints import UnusableModelError
    from decodner_hf.core.pipeline import DecodNERPipeline
    from decodner_hf.registration import register

    register()
    if (options.device or "").startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"--device {options.device}: this machine has no GPU that torch can use; leave it out for cpu."
        )
    chosen = {"candidate_labels": options.labels, "threshold": _threshold(options), "overlap": options.overlap}
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    # The class is named because a folder with custom code asks for trust_remote_code otherwise.
    try:
        pipe = pipeline(
            "decodner-ner",
            model=model,
            device=options.device,
            dtype=options.dtype,
            pipeline_class=DecodNERPipeline,
            **{name: value for name, value in chosen.items() if value is not None},
        )
    except UnusableModelError as error:
        raise ValueError(str(error)) from None
    except EXPECTED:
        raise
    except Exception as error:  # what broken files raise in the libraries that read them: KeyError, SafetensorError
        problem = " ".join(str(error).split())
        raise RuntimeError(f"cannot load {model}: {type(error).__name__}: {problem}") from error
    if options.labels is None and not pipe.model.config.entity_labels:
        raise ValueError(f"{model} has no labels of its own: name some with --labels.")
    loaded: Pipe = pipe
    loaded("")  # what the model cannot serve, a label named None for instance, is refused now and once
    return loaded


def _threshold(options: argparse.Namespace) -> float | dict[str, float] | None:
    general: float | None = options.threshold
    of_labels: dict[str, float] = options.label_threshold
    if of_labels and general is not None:
        return {label: of_labels.get(label, general) for label in options.labels}
    return of_labels or general


def _tag(options: argparse.Namespace) -> int:
    records = _given(options.texts) if options.texts else _from_standard_input()
    first = next(records, None)
    if first is None:
        _say("standard input was empty. (Texts go before --labels, or behind a --.)")
        return OK
    typed = not options.texts and sys.stdin.isatty()  # each line is answered before the next is read
    pipe = load_pipeline(options)
    groups = ([record] for record in chain([first], records)) if typed else [chain([first], records)]
    results = (result for group in groups for result in _results(pipe, iter(group)))
    if options.format == "table":
        for number, (record, entities) in enumerate(results):
            if len(options.texts) != 1:
                print(f"{chr(10) if number else ''}# {record.place}: {printable(record.text[:100])}")
            print(table(entities) or "no entities\n", end="", flush=True)
    elif options.format == "jsonl":
        for record, entities in results:
            print(json.dumps({"text": record.text, "entities": entities}, ensure_ascii=False), flush=True)
    elif options.format == "json":
        documents = [{"text": record.text, "entities": entities} for record, entities in results]
        print(json.dumps(documents, ensure_ascii=False, indent=2), flush=True)
    else:
        print("".join(html_page([(record.text, entities) for record, entities in results])), end="", flush=True)
    return OK


def _results(pipe: Pipe, records: Iterator[Record]) -> Iterator[tuple[Record, list[dict[str, Any]]]]:
    for record, outcome in stream(pipe, records):
        if isinstance(outcome, ValueError):
            raise ValueError(f"{record.place}: {outcome}") from outcome
        yield record, outcome


def _given(texts: Sequence[str]) -> Iterator[Record]:
    for number, text in enumerate(texts, 1):
        if len(text) < 1000 and "\n" not in text and Path(text).is_file():
            _say(f"note: {text!r} is read as a text, not as the file of that name; for files: decodner annotate.")
        yield Record(f"text {number}", text, {})


def _from_standard_input() -> Iterator[Record]:
    if sys.stdin.isatty():
        _say("reading standard input, a document a line, up to Ctrl-D. (Texts go before --labels, or behind a --.)")
    for place, line, problem in decoded_lines(sys.stdin.buffer):
        if problem is not None:
            raise ValueError(f"standard input, {place}: {problem}")
        yield Record(place, line, {})


def _annotate(options: argparse.Namespace) -> int:
    names = ("model", "labels", "dtype", "threshold", "label_threshold", "overlap")
    job = Job(
        options.input,
        options.out,
        options.text_column,
        options.entities_column,
        skip_errors=options.on_error == "skip",
        settings={name.replace("_", " "): getattr(options, name) for name in names},
    )
    with exclusive(job):
        total, done = prepare(job, options.resume, options.overwrite, _warn)
        pipe = load_pipeline(options)
        try:
            with tqdm(total=total, initial=done, unit="doc", disable=None) as progress:
                annotate(job, pipe, done, progress.update, _warn)
        finally:
            if job.journal.exists():
                _say(f"what was done is kept in {job.journal}: the same command with --resume goes on.")
    _say(f"{total} {'document' if total == 1 else 'documents'} read, results in {options.out}.")
    return OK


def _train(options: argparse.Namespace) -> int:
    check_model_folder(options.model)
    from decodner_hf.registration import register
    from decodner_hf.training.train import run_train

    register()
    return run_train(options)


def _warn(message: str) -> None:
    tqdm.write(f"decodner: warning: {message}", file=sys.stderr)


def _say(message: str) -> None:
    print(f"decodner: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
