"""Parts of a run that any machine can read and write: together they are what one process writes."""

import json
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_pipes import READING, FakePipe, describe_fakes, entities_of

from decodner_hf.corpus import annotate, parts
from decodner_hf.corpus.chunks import ChunkSize
from decodner_hf.corpus.job import plan_job
from decodner_hf.corpus.parquet import merged_schema
from decodner_hf.corpus.readers import Layout

SMALL = ChunkSize(documents=3, characters=1000)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    describe_fakes(monkeypatch)


def plan(inputs, folder, layout=None, **options):
    options |= {"output_format": "parquet", "warn": print}
    return plan_job(inputs, f"{folder}/", layout=layout or Layout(), **options)


def outcome(record):
    if "BAD" in record.text:
        return ValueError("BAD is refused.")
    return {"entities": entities_of(record.text), "report": READING}


def write_all(job, folder, done=(), size=SMALL):
    folder.mkdir(exist_ok=True)
    written = []
    for shard in parts.shards_of(job):
        for chunk in parts.read_chunks(job, shard, done, size):
            written.append(parts.write_part(job, folder, chunk, [outcome(record) for record in chunk.records]))
    return written


def rows_of(written):
    return [row for part in written for row in pq.read_table(part.path).to_pylist()]


def typed_rows(count):
    return pa.table(
        {
            "text": [f"City{number}" if number % 4 else None for number in range(count)],
            "at": pa.array(range(count), pa.timestamp("ns", "UTC")),
            "category": pa.array([f"c{number % 2}" for number in range(count)]).dictionary_encode(),
        }
    )


@pytest.mark.parametrize("shard_bytes", [1, 1 << 20], ids=["a shard per file", "one shard"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "both"])
def test_parts_together_are_what_one_process_writes(tmp_path, monkeypatch, kind, shard_bytes):
    monkeypatch.setattr(parts, "SHARD_BYTES", shard_bytes)
    source = tmp_path / "in"
    source.mkdir()
    if kind != "parquet":
        lines = [
            {"text": text, "n": number} for number, text in enumerate(["Rome", "BAD", "x", "Oslo", "a", "b", "c"])
        ]
        (source / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{\n")
        (source / "b.jsonl").write_text("")
        (source / "c.jsonl").write_text('{"text": "Lima", "n": 1.5, "m": ["x"]}\n')
    if kind != "jsonl":
        pq.write_table(typed_rows(2500), source / "d.parquet")
        pq.write_table(typed_rows(4), source / "e.parquet")
    options = {"layout": Layout(file_column="file", report_column="reading"), "skip_errors": True}
    job = plan([source], tmp_path / "out", **options)
    size = ChunkSize(documents=1100, characters=10_000) if kind != "jsonl" else SMALL
    written = write_all(job, tmp_path / "out", size=size)
    report = annotate(
        source, tmp_path / "one.parquet", FakePipe(), on_error="skip", file_column="file", report_column="reading",
        warn=lambda _: None,
    )  # fmt: skip
    one = pq.read_table(tmp_path / "one.parquet")
    schema = merged_schema(parts.schemas_of(written), job.entities_column)
    for part in written:
        parts.rewrite(part.path, schema)
    assert rows_of(written) == one.to_pylist()
    assert schema.remove_metadata().equals(one.schema.remove_metadata())
    found = parts.report_on(list(parts.find_parts(tmp_path / "out")))
    assert {**vars(found), "skipped": None} == {**vars(report), "skipped": None}
    key = {"document", "reason"}
    assert sorted(item["document"] for item in found.skipped) == sorted(item["document"] for item in report.skipped)
    assert all(item.keys() == key for item in found.skipped)


@pytest.mark.parametrize("kept", [{0}, {1}, {0, 2}, {0, 1, 2}, set()])
def test_what_is_missing_is_read_again_and_nothing_else(tmp_path, kept):
    source = tmp_path / "in.txt"
    source.write_text("".join(f"City{number}\n" for number in range(8)))
    job, folder = plan([source], tmp_path / "out"), tmp_path / "out"
    whole = write_all(job, folder)
    assert [(part.number, part.is_last, part.report.documents) for part in whole] == [
        (0, False, 3), (1, False, 3), (2, True, 2)
    ]  # fmt: skip
    for part in whole:
        if part.number not in kept:
            part.path.unlink()
    left = parts.missing(parts.shards_of(job), list(parts.find_parts(folder)))
    assert left == ({} if len(kept) == 3 else {0: frozenset(kept)})
    again = write_all(job, folder, done=kept)
    assert {part.number for part in again} == {0, 1, 2} - kept
    assert [row["text"] for row in rows_of(parts.find_parts(folder))] == [f"City{number}" for number in range(8)]


def test_a_part_that_is_written_twice_is_there_once(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("Rome\n")
    job = plan([source], tmp_path / "out")
    (first,), (second,) = write_all(job, tmp_path / "out"), write_all(job, tmp_path / "out")
    assert first.path == second.path
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part-000000-000000.parquet"]


def test_broken_documents_at_the_end_are_reported(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "Rome"}\n{\n{"text": 5}\n')
    (part,) = write_all(plan([source], tmp_path / "out", skip_errors=True), tmp_path / "out")
    assert [item["document"] for item in part.report.skipped] == ["in.jsonl, line 2", "in.jsonl, line 3"]


def test_a_broken_document_stops_after_the_whole_chunks_before_it(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "Rome"}\n' * 7 + "{\n" + '{"text": "Rome"}\n' * 7)
    with pytest.raises(ValueError, match="line 8: not JSON"):
        write_all(plan([source], tmp_path / "out"), tmp_path / "out")
    found = list(parts.find_parts(tmp_path / "out"))
    assert [(part.number, part.is_last) for part in found] == [(0, False), (1, False)]


@pytest.mark.parametrize("damage", ["empty", "torn", "other"])
def test_a_damaged_part_is_named(tmp_path, damage):
    source, folder = tmp_path / "in.txt", tmp_path / "out"
    source.write_text("Rome\n")
    (part,) = write_all(plan([source], folder), folder)
    if damage == "other":
        pq.write_table(pa.table({"a": [1]}), part.path)
    else:
        part.path.write_bytes(b"" if damage == "empty" else part.path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"part-000000-000000\.parquet is damaged, or no part"):
        list(parts.find_parts(folder))


def test_small_files_share_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SHARD_BYTES", 10)
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text("x" * (20 if number == 3 else 4))
    shards = parts.shards_of(plan([tmp_path], tmp_path / "out"))
    assert [(shard.first, shard.last) for shard in shards] == [(0, 3), (3, 4), (4, 7)]
    assert all(one.last == other.first for one, other in pairwise(shards))
    assert [shard.number for shard in shards] == [0, 1, 2]
