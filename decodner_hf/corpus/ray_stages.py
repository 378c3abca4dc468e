"""Defines the stages that run on the machines of a Ray cluster: read, annotate, write.

In and out: tables of one row, which holds a pickled value; an error is a value, too, and passes the later stages, so
that only lost workers are failures to Ray.
Knows nothing of rounds or of what is missing.
"""

import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .chunks import ChunkSize
from .engine import LoadPipeline, PipelineEngine, identity_of
from .job import Job
from .parquet import pyarrow
from .parts import Chunk, Shard, read_chunks, write_part

EXPECTED = (ValueError, OSError, RuntimeError, ImportError)  # errors whose message says enough


def read(batch: Any, job: Job, size: ChunkSize) -> Iterator[Any]:
    """Reads the chunks of a shard that are not written yet."""

    def chunks(item: tuple[Shard, frozenset[int]]) -> Iterator[Any]:
        shard, done = item
        yield from read_chunks(job, shard, done, size)

    return _stage(batch, chunks)


class Annotator:
    """Annotates chunks in an actor, which loads the pipeline with the first one."""

    def __init__(self, load: LoadPipeline, device: str, model: str) -> None:
        """Takes what loads the pipeline, the device, and what the model's fingerprint must be."""
        self.load, self.device, self.model = load, device, model
        self.engine: PipelineEngine | None = None

    def __call__(self, batch: Any) -> Iterator[Any]:
        """Gives a chunk with the outcomes of its documents."""
        return _stage(batch, self._annotated)

    def _annotated(self, chunk: Chunk) -> Iterator[Any]:
        if self.engine is None:
            engine = PipelineEngine(self.load(self.device))
            if engine.identity["model"] != self.model:
                raise ValueError("this machine has another model than the one that the run began with.")
            self.engine = engine
        outcomes = [outcome for _, outcome in self.engine.annotate(iter(chunk.records))]
        yield chunk, [ValueError(str(item)) if isinstance(item, ValueError) else item for item in outcomes]


def write(batch: Any, job: Job, folder: Path) -> Iterator[Any]:
    """Writes annotated chunks; gives the number of documents of each."""

    def written(item: tuple[Chunk, list[Any]]) -> Iterator[Any]:
        yield write_part(job, folder, *item).report.documents

    return _stage(batch, written)


def _stage(batch: Any, do: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
    """Yields a table for each value that `do` gives for the batch's one; an error is a value, too, and passes."""
    value = pickle.loads(batch["payload"][0].as_py())
    if isinstance(value, Exception):
        yield batch
        return
    try:
        for made in do(value):
            yield _payload(made)
    except Exception as error:  # for `value_of`, on the machine that began the run: other failures are lost workers
        yield _payload(_plain(error))


def _payload(value: Any) -> Any:
    arrow, _ = pyarrow()
    return arrow.table({"payload": arrow.array([pickle.dumps(value)], arrow.large_binary())})


def _plain(error: Exception) -> Exception:
    """Returns an error of a class that every machine knows."""
    kind = next((kind for kind in EXPECTED if isinstance(error, kind)), None)
    return kind(str(error)) if kind else RuntimeError("".join(traceback.format_exception(error)))


def value_of(payload: bytes) -> Any:
    """Returns the value; raises it, if it is an error."""
    value = pickle.loads(payload)
    if isinstance(value, Exception):
        raise value
    return value


def describe(load: LoadPipeline, device: str) -> bytes:
    """Loads the pipeline and returns what its results depend on, pickled; or the error."""
    try:
        return pickle.dumps(identity_of(load(device)))
    except Exception as error:  # for `value_of`
        return pickle.dumps(_plain(error))
