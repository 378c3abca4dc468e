"""The command `decodner annotate`: entities in every document of files.

In: parsed arguments. Out: files with entities, a report beside them, progress on standard error; an exit code.
Knows nothing of how files are read or entities are found.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn

from .loading import load_pipeline, loader_by_device, quick_imports
from .messages import say, warn
from .pipeline_arguments import add_pipeline_arguments, check_pipeline_arguments, count

if TYPE_CHECKING:
    from decodner_hf.corpus.engine import Engine
    from decodner_hf.corpus.inputs import Source
    from decodner_hf.corpus.job import Job
    from decodner_hf.corpus.report import Report

SUMMARY = "find entities in files"
DESCRIPTION = """\
Finds entities in every document of files: .txt and .md (a document a line, or --whole-file), .jsonl, .json (a list),
.csv, .tsv and .parquet; text formats also as .gz or .zst. Folders are read with all that they hold.
Writes .jsonl, .csv, .tsv, .parquet (the input's fields and the entities), .conll (a word and its tag a line) or .html,
with a report beside it (.report.json): documents, entities, and what was left out, with reasons.
Outputs appear when they are complete. After an interruption --resume goes on where the run stopped.

examples:
  decodner annotate news.jsonl --out entities.jsonl
  decodner annotate reports/ "mail/**/*.txt" --whole-file --out entities.parquet
  decodner annotate tables/ --out annotated/ --format csv
  zcat news.jsonl.gz | decodner annotate - --input-format jsonl --out - | grep Berlin
"""
FORMATS = ("jsonl", "csv", "tsv", "parquet", "conll", "html", "jsonl.gz", "csv.gz", "tsv.gz", "jsonl.zst", "csv.zst")
INPUT_FORMATS = ("txt", "jsonl", "json", "csv", "tsv", "parquet")
STANDARD = "-"
OK = 0


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    command.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="files, folders, patterns in quotes, or - for standard input"
    )
    command.add_argument(
        "--out", required=True, metavar="OUTPUT",
        help="a file, or a folder (ending in / if it is new) for one output an input, or - for standard output",
    )  # fmt: skip
    files = command.add_argument_group("files")
    files.add_argument(
        "--format", choices=FORMATS, help="of the output (default: by its name; jsonl in a folder and for -)"
    )
    files.add_argument("--input-format", choices=INPUT_FORMATS, default="txt", help="of standard input (default: txt)")
    files.add_argument("--whole-file", action="store_true", help="each .txt and .md file is one document")
    files.add_argument(
        "--file-column", metavar="NAME",
        help="a field to add with the name of the document's file (default: file with --whole-file, else none)",
    )  # fmt: skip
    files.add_argument(
        "--report-column", metavar="NAME",
        help="a field to add with how the document was read: windows, what was left out (default: none)",
    )  # fmt: skip
    files.add_argument("--text-column", default="text", metavar="NAME", help="the field with the text (default: text)")
    files.add_argument(
        "--entities-column", default="entities", metavar="NAME", help="the output's new field (default: entities)"
    )
    files.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="at a broken document: stop (default), or skip it"
    )
    start = files.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on with an interrupted run, if there is one")
    start.add_argument("--overwrite", action="store_true", help="replace outputs that exist, start from nothing")
    add_pipeline_arguments(command)
    machines = command.add_argument_group("several GPUs")
    machines.add_argument(
        "--devices", metavar="DEVICE,DEVICE", help="one process per device, instead of --device: cuda:0,cuda:1"
    )
    machines.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="local: this machine (default); ray: a Ray cluster, which writes a folder of parquet files",
    )  # fmt: skip
    machines.add_argument(
        "--ray-address", metavar="HOST:PORT",
        help="the cluster; auto: the one on this machine; local: start one (default: $RAY_ADDRESS, or local)",
    )  # fmt: skip
    machines.add_argument(
        "--ray-workers", type=count, metavar="N", help="model actors (default: one per GPU, or per CPU but one)"
    )


def check(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """Checks the arguments together."""
    check_pipeline_arguments(options, fail)
    if options.devices is not None:
        options.devices = _devices(options, fail)
    _check_engine(options, fail)
    if options.inputs.count(STANDARD) > 1:
        fail("argument INPUT: standard input (-) can be read once")
    if options.resume and options.out == STANDARD:
        fail("argument --resume: what went to standard output cannot be gone on with; name a file with --out")
    if options.file_column is None and options.whole_file:
        options.file_column = "file"
    if ".conll" in Path(f"_.{options.format}" if options.format else options.out.lower()).suffixes:
        if options.overlap not in (None, "flat"):
            fail(f"argument --overlap: a conll file has one tag a word and cannot hold --overlap {options.overlap}")
        broken = [name for name in options.labels or () if not name.isprintable()]
        if broken:
            fail(f"argument --labels: {broken[0]!r} holds a tab, a line end or the like, which a conll file cannot")
        options.overlap = "flat"


def _devices(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> list[str]:
    """Returns the devices that `--devices` names, one per process."""
    devices = [device.strip() for device in options.devices.split(",")]
    if not all(devices):
        fail(f"argument --devices: {options.devices!r} is not a list such as cuda:0,cuda:1")
    if options.device is not None:
        fail("argument --devices: not allowed with argument --device")
    return devices


def _check_engine(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    if options.engine == "local":
        for name in ("ray_address", "ray_workers"):
            if getattr(options, name) is not None:
                fail(f"argument --{name.replace('_', '-')}: it needs --engine ray")
        return
    if options.devices is not None:
        fail("argument --devices: with --engine ray, Ray chooses the GPUs; --ray-workers says how many")
    if options.format not in (None, "parquet"):
        fail(f"argument --format: --engine ray writes parquet, not {options.format}")
    if options.out == STANDARD:
        fail("argument --out: --engine ray writes a folder, not standard output")
    options.format = "parquet"
    options.out = options.out if options.out.endswith("/") else f"{options.out}/"


def run(options: argparse.Namespace) -> int:
    """Annotates the files; returns the exit code."""
    with quick_imports():
        from decodner_hf.corpus.inputs import standard_input
        from decodner_hf.corpus.writers import STREAMED
    source = standard_input(options.input_format, sys.stdin.buffer)
    if options.out != STANDARD:
        report = _to_files(options, options.out, source)
        state = "complete already" if report.was_complete else "complete"
        count = f"{report.documents:,} {'document' if report.documents == 1 else 'documents'}"
        say(f"{state}: {count} annotated, results in {options.out}.")
    elif f".{options.format or 'jsonl'}" in STREAMED:
        _to_standard_output(options, source)
    else:  # tables need to know every field before the first row
        with TemporaryDirectory() as folder:
            target = Path(folder) / f"output.{options.format}"
            _to_files(options, target, source)
            with target.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    return OK


def _to_files(options: argparse.Namespace, output: str | Path, source: "Source") -> "Report":
    from decodner_hf.corpus import ShownProgress
    from decodner_hf.corpus.inputs import spooled
    from decodner_hf.corpus.run import run_job

    spool = Path(f"{str(output).rstrip('/')}.stdin{source.suffix}") if STANDARD in options.inputs else None
    if spool is not None:
        if options.overwrite:
            spool.unlink(missing_ok=True)
        source = spooled(source, spool, options.resume)
    job = _plan(options, output, source)
    journal = job.side_file("journal")
    try:
        if options.engine == "ray":
            return _on_ray(options, job)
        return run_job(
            job,
            lambda: _engine(options),
            resume=options.resume,
            overwrite=options.overwrite,
            progress=ShownProgress(say),
            warn=warn,
        )
    except BaseException:
        if journal.exists() and options.out != STANDARD:
            say(f"what was done is kept in {journal}: the same command with --resume goes on.")
        raise
    finally:
        if spool is not None and not journal.exists():
            spool.unlink(missing_ok=True)


def _on_ray(options: argparse.Namespace, job: "Job") -> "Report":
    from decodner_hf.corpus import ShownProgress
    from decodner_hf.corpus.ray_run import run_on_ray

    return run_on_ray(
        job,
        loader_by_device(options),
        address=options.ray_address,
        device=options.device,
        workers=options.ray_workers,
        resume=options.resume,
        overwrite=options.overwrite,
        progress=ShownProgress(say),
        warn=warn,
    )


def _to_standard_output(options: argparse.Namespace, source: "Source") -> None:
    from decodner_hf.corpus import ShownProgress
    from decodner_hf.corpus.run import stream_job

    job = _plan(options, STANDARD, source)
    progress = None if sys.stdout.isatty() else ShownProgress(say)
    stream_job(job, lambda: _engine(options), sys.stdout.buffer, progress=progress, warn=warn)


def _engine(options: argparse.Namespace) -> "Engine":
    from decodner_hf.corpus.engine import PipelineEngine
    from decodner_hf.corpus.processes import ProcessEngine

    if options.devices is None:
        return PipelineEngine(load_pipeline(options))
    return ProcessEngine(loader_by_device(options), options.devices)


def _plan(options: argparse.Namespace, output: str | Path, source: "Source") -> "Job":
    from decodner_hf.corpus.job import plan_job
    from decodner_hf.corpus.readers import Layout

    return plan_job(
        [source if given == STANDARD else given for given in options.inputs],
        output,
        layout=Layout(options.text_column, options.whole_file, options.file_column, options.report_column),
        entities_column=options.entities_column,
        output_format=options.format,
        skip_errors=options.on_error == "skip",
        warn=warn,
    )
