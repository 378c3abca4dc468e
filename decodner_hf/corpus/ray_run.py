"""Annotates files on a Ray cluster: Ray Data reads, one actor per GPU annotates, tasks write parquet parts.

In: a job, a way to load the pipeline. Out: a folder of parquet files, in the order of the documents, and a report.
Chunks of texts go to the actors and lists of entities from them to the writers. What a lost worker had is annotated
again: a part is written once it is whole, replaces nothing but itself, and is what later rounds and runs go on from.
Knows nothing of how the pipeline works, nor of the command line.
"""

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from .chunks import ChunkSize
from .engine import LoadPipeline
from .inputs import Meter
from .job import Job
from .journal import Journal
from .parquet import merged_schema
from .parts import (
    CHUNK,
    SHARD_BYTES,
    Shard,
    WrittenPart,
    find_parts,
    missing,
    remove_unfinished,
    report_on,
    rewrite,
    schemas_of,
    shards_of,
)
from .progress import Progress
from .ray_cluster import Room, connect, room
from .ray_stages import Annotator, describe, read, value_of, write
from .records import Warn
from .report import Report, finished_run, read_report
from .run import check_same
from .side_files import locked
from .tally import WARNINGS_SHOWN

ROUNDS_WITHOUT_PARTS = 3  # after which workers are lost for a reason that does not pass
TASK_CPUS = 0.1  # of tasks that read and write
ACTORS_PER_TASK = 4  # for so many actors one more task reads, and one more writes
ONE_BY_ONE: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}


def run_on_ray(
    job: Job,
    load: LoadPipeline,
    *,
    address: str | None = None,
    device: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    warn: Warn,
    size: ChunkSize = CHUNK,
) -> Report:
    """Runs a job whose output is a folder of parquet files.

    Args:
        job: what to read and write; all machines must see its files under the same names.
        load: loads the pipeline on a device, on any machine.
        address: of the cluster, see `connect`.
        device: "cuda" or "cpu", see `room`.
        workers: number of model actors, see `room`.
        resume: go on with an interrupted run, if there is one.
        overwrite: replace the parts that are there.
        progress: shows how far the run is.
        warn: gets warnings.
        size: of the chunks, and so of the parts.

    Returns:
        What was annotated and what was left out; it is also in the folder, `decodner.report.json`.

    Raises:
        ValueError, OSError: as `annotate`; parts that are written are kept.
        ConnectionError: a cluster that cannot be reached.
        RuntimeError: workers that are lost again and again.
    """
    folder = _output_folder(job).resolve()
    job.check_beginning()
    ray = connect(address)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(job.side_file("lock"), folder):
        journal = Journal(job.side_file("journal"))
        begun = None if overwrite else _earlier_run(job, journal, resume, folder)
        division = {"division": [SHARD_BYTES, size.documents, size.characters]}
        run = job.identity() | division | {"engine": "ray"}
        if begun is not None:
            check_same(job, begun, run)
        place = room(ray, device, workers)
        run |= _identity(ray, load, place)
        if begun is None:
            for part in sorted(folder.glob("part-*.parquet")):
                part.unlink()
            journal.remove()
            journal.create(run)
        else:
            check_same(job, begun, run)
            if journal.header() is None:
                return read_report(job.side_file("report.json"))
        rounds = _Rounds(ray, _for_all_machines(job, run), folder, load, device, place, run["model"], size)
        parts = rounds.complete(progress or Progress())
        _unify(ray, job, parts)
        report = report_on(parts)
        for skipped in report.skipped[:WARNINGS_SHOWN]:
            warn(f"{skipped['document']} is left out: {skipped['reason']}")
        if len(report.skipped) > WARNINGS_SHOWN:
            warn(f"{len(report.skipped)} documents in all are left out")
        report.write(job.side_file("report.json"), run | {"parts": len(parts)}, [])
        journal.remove()
    return report


class _Rounds:
    """Passes over what is missing, until nothing is."""

    def __init__(
        self,
        ray: Any,
        job: Job,
        folder: Path,
        load: LoadPipeline,
        device: str | None,
        place: Room,
        model: str,
        size: ChunkSize,
    ) -> None:
        self.ray, self.job, self.folder, self.load, self.device = ray, job, folder, load, device
        self.place, self.model, self.size = place, model, size

    def complete(self, progress: Progress) -> list[WrittenPart]:
        """Returns all parts, in order.

        Raises:
            RuntimeError: round after round without a part.
            ValueError, OSError, ImportError: documents, files or models that are refused.
        """
        remove_unfinished(self.folder)
        shards = shards_of(self.job)
        parts = list(find_parts(self.folder))
        without = 0
        with progress.over(None, sum(part.report.documents for part in parts), Meter(), None):
            while left := missing(shards, parts):
                before = len(parts)
                self._round([(shard, left[shard.number]) for shard in shards if shard.number in left], progress)
                parts += find_parts(self.folder, {part.path for part in parts})
                parts.sort(key=lambda part: (part.shard, part.number))
                without = 0 if len(parts) > before else without + 1
                if without == ROUNDS_WITHOUT_PARTS:
                    raise RuntimeError(
                        f"the Ray cluster lost its workers {without} times without finishing a part, perhaps for lack "
                        "of memory: see Ray's logs, then go on with --resume."
                    )
        return parts

    def _round(self, left: list[tuple[Shard, frozenset[int]]], progress: Progress) -> None:
        """Annotates what is left; what workers that are lost had stays left."""
        now = room(self.ray, self.device, None)
        actors = min(now.actors, self.place.actors)
        data = self.ray.data
        few = {"num_cpus": TASK_CPUS, "compute": data.TaskPoolStrategy(size=1 + actors // ACTORS_PER_TASK)}
        with _settings(data), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            receipts = (
                data.from_items([{"payload": pickle.dumps(item)} for item in left], override_num_blocks=len(left))
                .map_batches(read, fn_kwargs={"job": self.job, "size": self.size}, **few, **ONE_BY_ONE)
                .map_batches(
                    Annotator,
                    fn_constructor_args=(self.load, now.device, self.model),
                    compute=data.ActorPoolStrategy(size=actors),
                    **_without_restarts(self.ray),
                    **now.resources,
                    **ONE_BY_ONE,
                )
                .map_batches(write, fn_kwargs={"job": self.job, "folder": self.folder}, **few, **ONE_BY_ONE)
            )
            for row in receipts.iter_rows():
                for _ in range(value_of(row["payload"])):
                    progress.advance()


def _without_restarts(ray: Any) -> dict[str, int]:
    """Returns Ray Data's arguments for actors: a restarted one keeps its task even where no machine has room for it.

    From 2.64 on Ray Data takes no such arguments: then the tasks of a lost worker wait for its machine to come back.
    """
    major, minor = (int(number) for number in ray.__version__.split(".")[:2])
    return {"max_restarts": 0} if (major, minor) < (2, 64) else {}


@contextmanager
def _settings(data: Any) -> Iterator[None]:
    """Sets for new datasets: a block per row, no bars, and tasks of lost workers are dropped instead of the run."""
    context = data.DataContext.get_current()
    chosen = {"target_max_block_size": 1, "max_errored_blocks": -1, "enable_progress_bars": False}
    chosen["print_on_execution_start"] = False
    before = {name: getattr(context, name) for name in chosen}
    try:
        for name, value in chosen.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _output_folder(job: Job) -> Path:
    if job.base == job.parts[0].target or job.parts[0].form.suffix != ".parquet":
        raise ValueError(
            f"--engine ray writes a folder of parquet files, not {job.parts[0].target.name}: end the name of the "
            "output in /, and leave --format out or make it parquet."
        )
    return job.base.parent


def _earlier_run(job: Job, journal: Journal, resume: bool, folder: Path) -> dict[str, Any] | None:
    """Returns what identifies the run that is to be resumed, or that is complete; None where there is none.

    Raises:
        FileExistsError: a run or an output that would be replaced.
    """
    header = journal.header()
    parts = len(list(folder.glob("part-*.parquet")))
    if header is not None:
        if not resume:
            raise FileExistsError(
                f"{folder} holds {parts} parts of an interrupted run: go on with --resume, or start anew with "
                "--overwrite."
            )
        return header
    complete = finished_run(job.side_file("report.json"), []) if resume else None
    if complete is not None and complete.get("parts") == parts:
        return complete
    if parts:
        raise FileExistsError(
            f"{folder} holds {parts} parts already: replace them with --overwrite, or name another folder."
        )
    return None


def _identity(ray: Any, load: LoadPipeline, place: Room) -> dict[str, Any]:
    """Returns what the results depend on, from a worker that loads the pipeline; raises what loading raises."""
    task = ray.remote(**place.resources)(describe)
    try:
        identity: dict[str, Any] = value_of(ray.get(task.remote(load, place.device)))
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"a worker of the Ray cluster was lost while it loaded the model: {error}") from error
    return identity


def _for_all_machines(job: Job, run: dict[str, Any]) -> Job:
    """Returns the job with whole paths, and with the fields of entities that the settings add, equal in all parts."""
    added = {"scores": run.get("return all scores"), "truncated_at": run.get("long documents") == "truncate"}
    fields = tuple(name for name, is_added in added.items() if is_added)
    sources = tuple(replace(source, path=source.path.resolve()) for source in job.sources)
    parts = tuple(replace(part, form=replace(part.form, entity_fields=fields)) for part in job.parts)
    return replace(job, sources=sources, parts=parts)


def _unify(ray: Any, job: Job, parts: list[WrittenPart]) -> None:
    """Gives all parts one schema, where what their documents hold made them differ."""
    schemas = schemas_of(parts)
    if len(schemas) > 1:
        schema = merged_schema(schemas, job.entities_column)
        task = ray.remote(num_cpus=TASK_CPUS)(rewrite)
        ray.get([task.remote(part.path, schema) for part in parts if not part.schema.equals(schema)])
