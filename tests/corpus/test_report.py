"""What was read and what was not: per run beside the output, per document in a field of it."""

import csv
import json

import pyarrow.parquet as pq
import pytest
from fake_pipes import READING, FakePipe, describe_fakes, entities_of
from tiny_pipelines import tiny_native, tiny_pipeline

from decodner_hf.corpus import annotate

OVERLONG = {"windows": 2, "truncated_at": 7, "words_left_out": [[0, 9]], "candidates": 3}
OVERLONG |= {"candidates_left_out": {"too_many_words": 0, "no_tokens": 1, "not_read": 4}}


class Reporting(FakePipe):
    """Texts that say LONG were not read whole."""

    def __call__(self, inputs, return_report=False):
        if isinstance(inputs, str):
            return next(iter(self([inputs], return_report)))
        return ({"entities": self.one(text), "report": OVERLONG if "LONG" in text else READING} for text in inputs)


def report_of(target):
    return json.loads(target.with_name(f"{target.name}.report.json").read_text())


@pytest.mark.parametrize("after", [None, 1, 3])
def test_a_run_reports_what_was_not_read_wherever_it_was_interrupted(monkeypatch, tmp_path, after):
    describe_fakes(monkeypatch)
    source, target = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("Rome\nLONG one\nOslo\nBAD\nLONG two\n")
    options = {"on_error": "skip", "warn": print}
    if after is not None:
        with pytest.raises(KeyboardInterrupt):
            annotate(source, target, Reporting(interrupt_after=after), **options)
    report = annotate(source, target, Reporting(), resume=True, **options)
    expected = {
        "documents": 4,
        "entities": {"Name": 4},
        "windows": 6,
        "truncated": [{"document": f"in.txt, line {line}", "characters": 7} for line in (2, 5)],
        "words_left_out": [{"document": f"in.txt, line {line}", "characters": [[0, 9]]} for line in (2, 5)],
        "candidates": 16,
        "candidates_left_out": {"too_many_words": 4, "no_tokens": 2, "not_read": 8},
        "skipped": [{"document": "in.txt, line 4", "reason": "BAD is refused."}],
    }
    written = report_of(target)
    assert {name: written[name] for name in expected} == expected
    assert {name: getattr(report, name) for name in expected} == expected
    assert written["outputs"] == [[str(target), target.stat().st_size]]
    again = annotate(source, target, Reporting(), resume=True, **options)
    assert {name: getattr(again, name) for name in expected} == expected


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("out", ["jsonl", "csv", "parquet", "conll"])
def test_the_report_of_each_document_is_a_field_on_request(monkeypatch, tmp_path, form, out):
    describe_fakes(monkeypatch)
    source, target = tmp_path / f"in.{form}", tmp_path / f"out.{out}"
    (tmp_path / "in.jsonl").write_text('{"text": "Rome", "n": 1}\n{"text": "LONG", "n": 2}\n')
    if form == "parquet":
        annotate(tmp_path / "in.jsonl", source, FakePipe(), entities_column="old")
    annotate(source, target, Reporting(), report_column="reading")
    if out == "jsonl":
        rows = [json.loads(line)["reading"] for line in target.read_text().splitlines()]
    elif out == "csv":
        with target.open(newline="", encoding="utf-8") as file:
            rows = [json.loads(row["reading"]) for row in csv.DictReader(file)]
    elif out == "parquet":
        rows = [json.loads(row["reading"]) for row in pq.read_table(target).to_pylist()]
    else:
        heads = [line for line in target.read_text().splitlines() if line.startswith("-DOCSTART-")]
        rows = [json.loads(head.split("\t")[1])["reading"] for head in heads]
    assert rows == [READING, OVERLONG]


def test_an_overlong_word_loses_no_document_and_stops_no_list(tmp_path):
    pipe = tiny_pipeline(model=tiny_native(max_position_embeddings=256), candidate_labels=["Person"], threshold=0.0)
    source, target = tmp_path / "in.txt", tmp_path / "out.jsonl"
    blob = "x" * 3000
    texts = ["Tim Cook met Steve Jobs.", f"Tim Cook {blob} met Steve Jobs.", "Apple."]
    source.write_text("\n".join(texts))
    annotate(source, target, pipe)
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["text"] for row in rows] == texts
    assert all(row["entities"] for row in rows)
    report = report_of(target)
    assert (report["documents"], report["skipped"]) == (3, [])
    assert report["words_left_out"] == [{"document": "in.txt, line 2", "characters": [[9, 9 + len(blob)]]}]


def test_entities_of_a_run_are_those_of_the_pipeline(tmp_path):
    pipe = tiny_pipeline(candidate_labels=["Person"], threshold=0.0)
    source, target = tmp_path / "in.txt", tmp_path / "out.jsonl"
    texts = ["Tim Cook met Steve Jobs.", "", "日本 Apple"]
    source.write_text("\n".join(texts), encoding="utf-8")
    annotate(source, target, pipe)
    rows = [json.loads(line)["entities"] for line in target.read_text(encoding="utf-8").splitlines()]
    for row, alone in zip(rows, pipe(texts), strict=True):
        assert [(entity["start"], entity["end"]) for entity in row] == [(e["start"], e["end"]) for e in alone]
        assert [entity["score"] for entity in row] == pytest.approx([e["score"] for e in alone], abs=1e-6)
    assert entities_of("") == rows[1]
