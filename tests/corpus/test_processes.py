"""Several worker processes: the same results as one, in order, and an error with finished work kept when one ends."""

import json
from functools import partial

import pytest
from fake_pipes import READING, FakePipe, describe_fakes, entities_of
from pipelines_in_processes import load_fake
from tiny_pipelines import tiny_pipeline

from decodner_hf.corpus import annotate
from decodner_hf.corpus.chunks import Chunks, ChunkSize
from decodner_hf.corpus.engine import PipelineEngine
from decodner_hf.corpus.job import plan_job
from decodner_hf.corpus.processes import ProcessEngine
from decodner_hf.corpus.progress import Progress
from decodner_hf.corpus.readers import Layout
from decodner_hf.corpus.records import Record
from decodner_hf.corpus.run import run_job

SMALL = ChunkSize(documents=3, characters=1000)
TWO = ["cpu", "cpu"]


def records(*texts):
    return iter([Record(str(index), text, {}) for index, text in enumerate(texts)])


@pytest.fixture(scope="module")
def engine():
    engine = ProcessEngine(load_fake, TWO, SMALL)
    yield engine
    engine.close()


def test_chunks_are_bounded_and_complete():
    texts = ["a" * 10, "b", "c", "", "d" * 7, "e" * 4, "f"]
    chunks = Chunks(records(*texts), ChunkSize(documents=3, characters=10))
    made = []
    while chunk := chunks.next():
        made.append([record.text for record in chunk])
    assert made == [["a" * 10], ["b", "c", ""], ["d" * 7, "e" * 4], ["f"]]
    assert chunks.failure is None
    assert chunks.next() == []


@pytest.mark.parametrize("count", [0, 1, 3, 4, 1000])
def test_every_document_comes_once_and_in_order(engine, count):
    texts = [f"City{number} and {number}" for number in range(count)]
    seen = list(engine.annotate(records(*texts)))
    assert [record.text for record, _ in seen] == texts
    assert [outcome for _, outcome in seen] == [{"entities": entities_of(text), "report": READING} for text in texts]


def test_a_refused_document_is_an_outcome_as_in_one_process(engine):
    texts = [*"ABCDEFGH", "BAD", *"IJKLMNOP", "BAD", "Q"]
    seen = list(engine.annotate(records(*texts)))
    assert [record.text for record, _ in seen] == texts
    assert [str(outcome) for _, outcome in seen if isinstance(outcome, ValueError)] == ["BAD is refused."] * 2


def test_a_failure_to_read_is_raised_after_all_results(engine):
    def failing():
        yield from records(*"ABCDE")
        raise OSError("disk")

    seen = []
    with pytest.raises(OSError, match="disk"):
        seen.extend(record.text for record, _ in engine.annotate(failing()))
    assert seen == [*"ABCDE"]


def test_documents_under_way_are_bounded(engine):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield Record("", "Rome", {})

    stream = engine.annotate(endless())
    for _ in range(3000):
        next(stream)
    assert read < 3000 + SMALL.documents * 4 * 32 * len(TWO) + 1
    stream.close()


@pytest.mark.parametrize(
    ("load", "devices", "error", "message"),
    [
        (partial(load_fake, exit_code=3), ["cpu"], RuntimeError, "process on cpu ended with exit code 3"),
        (partial(load_fake, error=OSError("no such model")), ["cpu"], OSError, "no such model"),
        (partial(load_fake, error=KeyError("a bug")), ["cpu"], RuntimeError, "(?s)cpu failed.*load_fake.*a bug"),
        (partial(load_fake, differ=True), TWO, RuntimeError, "another model"),
    ],
    ids=["ended", "refused", "bug", "models differ"],
)
def test_processes_that_cannot_load_are_one_clear_error(load, devices, error, message):
    with pytest.raises(error, match=message):
        ProcessEngine(load, devices)


@pytest.mark.parametrize("devices", [[], "cpu", ["cuda:99"], ["cpu", "tpu"]])
def test_devices_that_do_not_exist_are_refused_before_anything_starts(devices):
    with pytest.raises(ValueError, match=r"\['cuda:0', 'cuda:1'\]|there is no device '(cuda:99|tpu)'.* cpu"):
        ProcessEngine(load_fake, devices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("KILL", "process on cpu was killed by SIGKILL, perhaps"),
        ("BUG", "(?s)process on cpu failed.*a bug"),
    ],
)
def test_results_before_those_that_a_lost_process_owes_are_kept(text, message):
    engine = ProcessEngine(load_fake, TWO, SMALL)
    texts = [*(f"City{number}" for number in range(300)), text, *(f"Town{number}" for number in range(3000))]
    seen = []
    with pytest.raises(RuntimeError, match=message):
        seen.extend(engine.annotate(records(*texts)))
    engine.close()
    assert [record.text for record, _ in seen] == texts[: len(seen)]
    assert [outcome["entities"] for _, outcome in seen] == [entities_of(record.text) for record, _ in seen]
    # The process that ended may owe every chunk that it had; none of the 32 before the last one that it returned.
    assert 300 - 2 * 32 * SMALL.documents <= len(seen) <= 300


class KillingProgress(Progress):
    """Kills a process of the engine after so many documents."""

    def __init__(self, after):
        self.after, self.engine = after, None

    def start(self):
        self.engine = ProcessEngine(load_fake, TWO, SMALL)
        return self.engine

    def advance(self):
        self.after -= 1
        if self.after == 0:
            self.engine.processes[1].process.kill()


def test_a_run_whose_process_is_killed_goes_on_where_it_stopped_in_one_process(tmp_path, monkeypatch):
    texts = [f"City{number} and {number}" for number in range(2000)]
    source, target = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("\n".join(texts))
    job = plan_job([source], target, layout=Layout(), warn=print)
    progress = KillingProgress(after=500)
    with pytest.raises(RuntimeError, match="killed by SIGKILL"):
        run_job(job, progress.start, resume=False, overwrite=False, progress=progress, warn=print)
    assert not target.exists()
    kept = (tmp_path / "out.jsonl.journal").read_text().count("\n") - 1
    assert 500 <= kept < 2000

    describe_fakes(monkeypatch)
    pipe = FakePipe()
    report = run_job(job, lambda: PipelineEngine(pipe), resume=True, overwrite=False, warn=print)
    assert pipe.annotated == texts[kept:]
    assert report.documents == 2000
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert rows == [{"text": text, "entities": entities_of(text)} for text in texts]


def rounded(path):
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    for row in rows:
        for entity in row["entities"]:
            entity["score"] = pytest.approx(entity["score"], abs=1e-5)
    return rows


def test_copies_of_a_pipeline_give_what_the_pipeline_gives(tmp_path):
    pipe = tiny_pipeline(candidate_labels=["Person", "Company"], threshold=0.3)
    texts = [f"Tim Cook met number {number} of Apple." if number % 5 else "日本 \u2028" for number in range(300)]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    one = annotate(source, tmp_path / "one.jsonl", pipe)
    two = annotate(source, tmp_path / "two.jsonl", pipe, devices=TWO)
    assert rounded(tmp_path / "two.jsonl") == rounded(tmp_path / "one.jsonl")
    assert sum(one.entities.values()) > 300
    assert one == two
    again = annotate(source, tmp_path / "two.jsonl", pipe, resume=True)  # one model, in any number of processes
    assert again.was_complete
