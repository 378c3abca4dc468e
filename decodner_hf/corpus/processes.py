"""Annotates documents in several processes, one per device, and returns the results in input order.

In: a stream of documents, devices, a way to load the pipeline on one. Out: the stream of outcomes that one process
would give. Chunks of texts go out, lists of entities come back; a chunk goes to the process that has the least to do.
The number of chunks under way is bounded, so that memory does not grow with the corpus.
Knows nothing of files or journals.
"""

import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

import torch

from .chunks import Chunks, ChunkSize
from .engine import LoadPipeline
from .records import Outcome, Record
from .worker import Done, Failed, Ready, load_copy, serve

if TYPE_CHECKING:
    from ..core.pipeline import DecodNERPipeline

CHUNK = ChunkSize(documents=128, characters=1 << 15)
CHUNKS_PER_PROCESS = 32  # at most, handed out and not returned: more than a GPU has under way at any time
CHUNKS_KEPT = 4 * CHUNKS_PER_PROCESS  # at most, per process, until those before them are returned
SECONDS_TO_END = 5.0


@dataclass
class _Process:
    """A worker process and the numbers of the chunks that it has."""

    device: str
    process: BaseProcess
    texts: Connection
    outcomes: Connection
    chunks: set[int] = field(default_factory=set)
    has_ended: bool = False

    def send(self, number: int, chunk: Sequence[Record]) -> None:
        """Hands a chunk out."""
        self.chunks.add(number)
        with suppress(OSError):  # a process that ended: `receive` says how
            self.texts.send((number, [record.text for record in chunk]))

    def receive(self) -> Ready | Done:
        """Waits for the next message.

        Raises:
            RuntimeError: the process ended, or failed where a pipeline has no right to fail.
            ValueError, OSError, ImportError: what loading the pipeline raised.
        """
        try:
            message: Ready | Done | Failed = self.outcomes.recv()
        except (EOFError, OSError) as error:
            self.process.join(SECONDS_TO_END)
            raise RuntimeError(f"the process on {self.device} {self._end()}.") from error
        if isinstance(message, Failed):
            raise message.error
        return message

    def _end(self) -> str:
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        name = next((signal.name for signal in Signals if signal == -code), str(-code))
        hint = ", perhaps by the system for lack of memory" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"


@dataclass(frozen=True)
class _Ended:
    """Why a process ended, and the first chunk whose results are owed by one that did: those before it still come."""

    error: Exception
    owed: int


class ProcessEngine:
    """Worker processes, each with the pipeline on a device of its own."""

    def __init__(self, load: LoadPipeline, devices: Sequence[str], size: ChunkSize = CHUNK) -> None:
        """Starts the processes and waits until each has loaded the pipeline.

        Args:
            load: loads the pipeline; it is pickled, and imported by the processes.
            devices: one per process; a device may be named several times.
            size: of the chunks.

        Raises:
            ValueError: devices that do not exist; what `load` raises, also other errors.
            RuntimeError: processes that ended, or that loaded different models.
        """
        check_devices(devices)
        self.size = size
        self.processes: list[_Process] = []
        try:
            for device in devices:
                self.processes.append(_start(load, device, _threads(devices)))
            identities = [self._ready(process) for process in self.processes]
        except BaseException:
            self.close()
            raise
        self.identity: dict[str, Any] = identities[0]
        for process, identity in zip(self.processes, identities, strict=True):
            if identity != self.identity:
                self.close()
                raise RuntimeError(f"the process on {process.device} loaded another model than the others.")

    def annotate(self, records: Iterator[Record]) -> Iterator[tuple[Record, Outcome]]:
        """See `Engine.annotate`.

        Raises:
            RuntimeError: a process that ended; all results before the first that it owes come first.
        """
        chunks = Chunks(records, self.size)
        kept: dict[int, list[Record]] = {}  # handed out and not yielded, by number
        done: dict[int, tuple[Outcome, ...]] = {}
        given = first = 0
        ended: _Ended | None = None
        while True:
            while ended is None and len(kept) < CHUNKS_KEPT * len(self.processes) and (process := self._idlest()):
                if not (chunk := chunks.next()):
                    break
                kept[given] = chunk
                process.send(given, chunk)
                given += 1
            if ended is not None and (not kept or first >= ended.owed):
                raise ended.error
            if not kept:
                break
            ended = self._receive(done, ended)
            while first in done:
                yield from zip(kept.pop(first), done.pop(first), strict=True)
                first += 1
        if chunks.failure is not None:
            raise chunks.failure

    def close(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            process.process.terminate()
        for process in self.processes:
            process.process.join(SECONDS_TO_END)
            if process.process.exitcode is None:
                process.process.kill()
                process.process.join()
            process.texts.close()
            process.outcomes.close()
        self.processes = []

    def _ready(self, process: _Process) -> dict[str, Any]:
        message = process.receive()
        if not isinstance(message, Ready):
            raise RuntimeError(f"the process on {process.device} sent results before it was ready.")
        return message.identity

    def _idlest(self) -> _Process | None:
        """Returns the process with the fewest chunks, None where each has as many as it may have."""
        process = min(self.processes, key=lambda process: len(process.chunks))
        return process if len(process.chunks) < CHUNKS_PER_PROCESS else None

    def _receive(self, done: dict[int, tuple[Outcome, ...]], ended: _Ended | None) -> _Ended | None:
        """Waits for results and adds them to `done`; returns what is known of processes that ended."""
        waiting = [process for process in self.processes if not process.has_ended]
        ready = wait([process.outcomes for process in waiting])
        for process in waiting:
            if process.outcomes not in ready:
                continue
            try:
                message = process.receive()
            except Exception as error:  # for the caller of `annotate`, after the results that came before
                process.has_ended = True
                owed = min(process.chunks, default=sys.maxsize)
                ended = _Ended(error, owed) if ended is None else replace(ended, owed=min(owed, ended.owed))
            else:
                if isinstance(message, Done):
                    process.chunks.remove(message.number)
                    done[message.number] = message.outcomes
        return ended


def copies_on(pipe: "DecodNERPipeline", devices: Sequence[str]) -> ProcessEngine:
    """Starts processes with copies of a pipeline, which travels in a temporary file; raises as `ProcessEngine`."""
    check_devices(devices)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.pt"
        torch.save(pipe, path)
        return ProcessEngine(partial(load_copy, str(path)), devices)


def check_devices(devices: Sequence[str]) -> None:
    """Raises a ValueError that says which devices there are, unless `devices` names at least one and each exists."""
    if isinstance(devices, str) or not devices:
        raise ValueError(f"devices must be a list such as ['cuda:0', 'cuda:1'], not {devices!r}.")
    known = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type  # type: ignore[union-attr]  # there is one
        known += [kind, *(f"{kind}:{number}" for number in range(torch.accelerator.device_count()))]
    unknown = [device for device in devices if device not in known]
    if unknown:
        raise ValueError(f"there is no device {unknown[0]!r} on this machine; it has {', '.join(known)}.")


def _threads(devices: Sequence[str]) -> int | None:
    """Returns how many threads torch may use in each process on the CPU, which share its cores."""
    count = list(devices).count("cpu")
    return max(1, torch.get_num_threads() // count) if count else None


def _start(load: LoadPipeline, device: str, threads: int | None) -> _Process:
    context = multiprocessing.get_context("spawn")
    texts_here, texts_there = context.Pipe(duplex=False)[::-1]
    outcomes_here, outcomes_there = context.Pipe(duplex=False)
    process = context.Process(
        target=serve,
        args=(load, device, threads if device == "cpu" else None, texts_there, outcomes_there),
        name=f"decodner on {device}",
        daemon=True,
    )
    try:
        process.start()
    finally:
        texts_there.close()  # else no end of the process would be seen
        outcomes_there.close()
    return _Process(device, process, texts_here, outcomes_here)
