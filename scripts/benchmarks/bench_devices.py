"""Annotates one corpus on 1, 2, 4, ... devices, a process per device, and compares speed and output.

In: devices, the shape of a model (random weights, a tokenizer trained here, nothing is downloaded), sizes of a corpus
of sentences and of one of long documents. Out: per corpus and number of devices the documents per second while they
are annotated, the efficiency against one process, the host's cores in use, whether the output is that of one process;
what the process that reads and keeps results can do at most; a run of which one process is killed and which is
resumed; and the same as JSON in the last line.
"""

import argparse
import json
import pickle
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_corpus import MODELS, make_pipeline, texts, train_tokenizer, word_list
from bench_setting import figures_of, make_parser
from transformers import PreTrainedTokenizerFast

from decodner_hf import DecodNERPipeline
from decodner_hf.corpus.chunks import Chunks
from decodner_hf.corpus.engine import Engine, PipelineEngine
from decodner_hf.corpus.inputs import Meter
from decodner_hf.corpus.job import Job, plan_job
from decodner_hf.corpus.processes import CHUNK, ProcessEngine, check_devices
from decodner_hf.corpus.progress import Progress
from decodner_hf.corpus.readers import Layout
from decodner_hf.corpus.records import Outcome, Record
from decodner_hf.corpus.run import run_job

LARGEST_SCORE_DIFFERENCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}  # of equal outputs


@dataclass
class Line:
    """One line of the table.

    Attributes:
        corpus: its name.
        devices: number of processes; 1 is the plain pipeline in one process.
        documents: number of documents.
        start_seconds: until every process has loaded the model.
        seconds: from the first document to the last result.
        total_seconds: with reading the input once before, and writing the output.
        cores: the host's cores in use meanwhile, of all processes together; None where /proc is missing.
        efficiency: documents per second per device, against one process.
        differing: documents whose entities have other characters or labels than those of one process.
        score_difference: the largest of any entity's score.
        is_equal: the same documents in the same order, none differing, and scores within the dtype's rounding.
    """

    corpus: str
    devices: int
    documents: int
    start_seconds: float
    seconds: float
    total_seconds: float
    cores: float | None
    efficiency: float = 1.0
    differing: int = 0
    score_difference: float = 0.0
    is_equal: bool = True

    @property
    def rate(self) -> float:
        """Documents per second."""
        return self.documents / self.seconds


def load(options: dict[str, Any], tokenizer: PreTrainedTokenizerFast, device: str) -> DecodNERPipeline:
    """Returns the pipeline on a device; worker processes call it."""
    return make_pipeline(argparse.Namespace(**options | {"device": device}), tokenizer)


class CannedEngine:
    """Answers every document with three entities, as they come from a process: the host's own work is what is left."""

    identity: dict[str, Any] = {"model": "none"}  # noqa: RUF012

    def annotate(self, records: Iterator[Record]) -> Iterator[tuple[Record, Outcome]]:
        """See `Engine.annotate`."""
        entities = [
            {"entity_group": "person", "score": 0.123456789, "word": "ka lo", "start": 6 * at, "end": 6 * at + 5}
            for at in range(3)
        ]
        left_out = {"too_many_words": 3, "no_tokens": 0, "not_read": 0}
        report = {"windows": 1, "truncated_at": None, "words_left_out": [], "candidates": 76}
        outcome = pickle.dumps({"entities": entities, "report": report | {"candidates_left_out": left_out}})
        chunks = Chunks(records, CHUNK)
        while chunk := chunks.next():
            pickle.dumps([record.text for record in chunk])
            yield from ((record, pickle.loads(outcome)) for record in chunk)

    def close(self) -> None:
        """See `Engine.close`."""


class Watch(Progress):
    """Takes the time of annotating and the processor time of all processes; may kill one of them."""

    def __init__(self, kill_after: int | None = None) -> None:
        """`kill_after` documents the last process is killed."""
        self.kill_after, self.engine = kill_after, None
        self.seconds = self.start_seconds = 0.0
        self.cores: float | None = None
        self.done = 0

    def start(self, loader: Any, devices: list[str]) -> Engine:
        """Starts the engine and keeps it."""
        began = time.perf_counter()
        self.engine = PipelineEngine(loader(devices[0])) if len(devices) == 1 else ProcessEngine(loader, devices)
        self.start_seconds = time.perf_counter() - began
        return self.engine

    @contextmanager
    def over(self, total: int | None, done: int, meter: Meter, size: int | None) -> Iterator[None]:  # noqa: ARG002
        """See `Progress.over`."""
        pids = ["self", *(str(process.process.pid) for process in getattr(self.engine, "processes", ()))]
        before, began = processor_seconds(pids), time.perf_counter()
        try:
            yield
        finally:
            self.seconds = time.perf_counter() - began
            after = processor_seconds(pids)
            self.cores = None if before is None or after is None else (after - before) / self.seconds

    def advance(self) -> None:
        """Counts a document."""
        self.done += 1
        if self.done == self.kill_after:
            self.engine.processes[-1].process.kill()


def processor_seconds(pids: list[str]) -> float | None:
    """Returns the processor time that processes have used; None where /proc does not say."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        ticks += int(fields[11]) + int(fields[12])
    return ticks / 100


def host_rate(job: Job, documents: int) -> float:
    """Returns documents per second of reading, keeping and counting results alone."""
    watch = Watch()
    run_job(job, CannedEngine, resume=False, overwrite=True, progress=watch, warn=print)
    job.parts[0].target.unlink()
    return documents / watch.seconds


def measure(job: Job, loader: Any, devices: list[str], corpus: str, kept: Path) -> Line:
    """Annotates a corpus; the output is kept under another name."""
    watch, began = Watch(), time.perf_counter()
    report = run_job(
        job, lambda: watch.start(loader, devices), resume=False, overwrite=True, progress=watch, warn=print
    )
    total = time.perf_counter() - began - watch.start_seconds
    job.parts[0].target.replace(kept)
    return Line(corpus, len(devices), report.documents, watch.start_seconds, watch.seconds, total, watch.cores)


def killed_and_resumed(job: Job, loader: Any, devices: list[str], documents: int, kept: Path) -> dict[str, Any]:
    """Kills one of the processes when half of the documents have results, and resumes the run."""
    options = {"warn": print, "overwrite": False}
    job.side_file("report.json").unlink(missing_ok=True)
    first, second = Watch(kill_after=documents // 2), Watch()
    error = None
    try:
        run_job(job, lambda: first.start(loader, devices), resume=False, progress=first, **options)
    except RuntimeError as raised:
        error = str(raised)
    report = run_job(job, lambda: second.start(loader, devices), resume=True, progress=second, **options)
    job.parts[0].target.replace(kept)
    return {
        "error": error,
        "kept": first.done,
        "annotated_afterwards": second.done,
        "documents": report.documents,
    }


def difference(one: Path, other: Path) -> tuple[int, float, bool]:
    """Returns (documents with other entities, largest difference of a score, whether the documents are the same)."""
    differing, largest, same = 0, 0.0, True
    with one.open("rb") as left, other.open("rb") as right:
        rows = ((json.loads(a), json.loads(b)) for a, b in zip(left, right, strict=True))
        for expected, found in rows:
            same = same and expected["text"] == found["text"]
            spans = [
                [(entity["start"], entity["end"], entity["entity_group"]) for entity in row["entities"]]
                for row in (expected, found)
            ]
            if spans[0] != spans[1]:
                differing += 1
                continue
            scores = zip(expected["entities"], found["entities"], strict=True)
            largest = max([largest, *(abs(a["score"] - b["score"]) for a, b in scores)])
    return differing, largest, same


def run_corpus(
    options: argparse.Namespace, loader: Any, name: str, documents: list[str], folder: Path
) -> dict[str, Any]:
    """Measures one corpus on every number of devices; returns the figures."""
    source = folder / f"{name}.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    job = plan_job([source], folder / f"{name}-out.jsonl", layout=Layout(), warn=print)
    host = host_rate(job, len(documents))
    print(f"{name}: the host alone, without a model: {host:.0f} documents/s")
    lines: list[Line] = []
    one = folder / f"{name}-1.jsonl"
    for count in options.counts:
        kept = folder / f"{name}-{count}.jsonl"
        line = measure(job, loader, options.devices[:count], name, kept)
        if lines:
            line.efficiency = line.rate / lines[0].rate * lines[0].devices / count
            line.differing, line.score_difference, same = difference(one, kept)
            allowed = LARGEST_SCORE_DIFFERENCE[options.dtype]
            line.is_equal = same and not line.differing and line.score_difference <= allowed
        lines.append(line)
        show(line)
    kill: dict[str, Any] = {}
    if options.counts[-1] > 1:
        kept = folder / f"{name}-killed.jsonl"
        kill = killed_and_resumed(job, loader, options.devices[: options.counts[-1]], len(documents), kept)
        kill["differing"], kill["score_difference"], kill["same_documents"] = difference(one, kept)
        print(f"{name}: one process killed: {json.dumps(kill)}")
    return {"host_rate": host, "lines": [asdict(line) | {"rate": line.rate} for line in lines], "killed": kill}


def show(line: Line) -> None:
    """Prints one line of the table."""
    cores = "" if line.cores is None else f"{line.cores:.1f}"
    print(
        f"{line.corpus:16s}{line.devices:8d}{line.documents:11d}{line.start_seconds:9.1f}{line.seconds:10.2f}"
        f"{line.total_seconds:10.2f}{line.rate:11.1f}{line.efficiency:11.2f}{cores:>7s}{line.differing:11d}"
        f"{line.score_difference:9.1e}",
        flush=True,
    )


def read_options() -> argparse.Namespace:
    """Parses and completes the flags."""
    parser = make_parser(__doc__, MODELS)
    parser.add_argument("--devices", default="cpu,cpu", help="one per process: cuda:0,cuda:1; instead of --device")
    parser.add_argument("--counts", help="numbers of devices to measure; 1,2,4,... up to all if left out")
    parser.add_argument("--sentences", type=int, default=100_000)
    parser.add_argument("--sentence-words", type=int, default=13)
    parser.add_argument("--long-documents", type=int, default=2000)
    parser.add_argument("--long-words", type=int, default=1400)
    parser.add_argument("--token-budget", type=int, help="nodes a pass; the library's default if left out")
    parser.add_argument("--compile", action="store_true", help="compile the layers first")
    options = parser.parse_args()
    options.devices = options.devices.split(",")
    check_devices(options.devices)
    options.device = options.devices[0]
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    powers = [2**power for power in range(8) if 2**power <= len(options.devices)]
    options.counts = [int(count) for count in options.counts.split(",")] if options.counts else powers
    if options.counts[0] != 1 or max(options.counts) > len(options.devices):
        parser.error(f"--counts must begin with 1 and name at most the {len(options.devices)} of --devices")
    return options


def main() -> None:
    """Parses the flags, measures and prints."""
    options = read_options()
    generator = np.random.default_rng(0)
    words = word_list(generator, 3000)
    plain = {name: value for name, value in vars(options).items() if name not in ("devices", "counts")}
    loader = partial(load, plain, train_tokenizer(words))
    figures = figures_of(options)
    print(
        f"{options.preset}, {options.dtype}, random weights, {'compiled' if options.compile else 'not compiled'}; "
        f"{', '.join(options.devices)} ({figures['device_name']}); torch {figures['torch']}, transformers "
        f"{figures['transformers']}"
    )
    print(
        f"{'corpus':16s}{'devices':>8s}{'documents':>11s}{'start s':>9s}{'seconds':>10s}{'in all s':>10s}"
        f"{'docs/s':>11s}{'efficiency':>11s}{'cores':>7s}{'differing':>11s}{'scores':>9s}"
    )
    corpora = {
        "sentences": texts(generator, words, options.sentences, options.sentence_words),
        "long documents": texts(generator, words, options.long_documents, options.long_words),
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, documents in corpora.items():
            found[name] = run_corpus(options, loader, name, documents, Path(folder))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    print(json.dumps(figures | {"corpora": found}))


if __name__ == "__main__":
    main()
