"""Every input format becomes every output format, stopped anywhere."""

import csv
import gzip
import io
import json
import os
import random
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_pipes import TEXTS, FakePipe, describe_fakes, entities_of

from decodner_hf.corpus import annotate
from decodner_hf.corpus.inputs import named_source
from decodner_hf.corpus.readers import Layout, read_records

try:
    import zstandard
except ImportError:
    zstandard = None


def forms(*names):
    """Parameters for formats, those that need zstandard skipped without it."""
    lacking = pytest.mark.skipif(zstandard is None, reason="needs zstandard")
    return [pytest.param(name, marks=lacking if name.endswith("zst") else ()) for name in names]


PACKED = ("jsonl.gz", "csv.zst", "txt.gz", "parquet.gz")
INPUTS = ("jsonl", "ndjson", "json", "csv", "tsv", "txt", "md", "parquet", *PACKED)
OUTPUTS = ("jsonl", "csv", "tsv", "parquet", "conll", "html", "jsonl.gz", "csv.zst", "tsv.gz", "html.gz")
FORMULAS = ["=1+1", "+cmd", "-2+3", "@sum", "\t=1", "\r=1", "\uff1d1", "-5", "+1.5e3", "a=1", "", 'a"b\nc\rd,e']


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    describe_fakes(monkeypatch)


def write_corpus(path, texts):
    form, _, compression = path.name.partition(".")[2].partition(".")
    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    if form == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, pa.schema([("id", pa.string()), ("text", pa.string())])), sink)
        data = sink.getvalue().to_pybytes()
    elif form in ("csv", "tsv"):
        lines = []
        writer = csv.writer(SimpleNamespace(write=lines.append), delimiter="," if form == "csv" else "\t")
        writer.writerows([["id", "text"], *([row["id"], row["text"]] for row in rows)])
        data = "".join(lines).encode()
    elif form == "json":
        data = json.dumps(rows).encode()
    else:
        lines = texts if form in ("txt", "md") else map(json.dumps, rows)
        data = "".join(line + "\n" for line in lines).encode()
    pack = {"gz": gzip.compress, "zst": lambda data: zstandard.ZstdCompressor().compress(data), "": bytes}[compression]
    path.write_bytes(pack(data))
    return [row if form not in ("txt", "md") else {"text": row["text"]} for row in rows]


def unpacked(path):
    data = path.read_bytes()
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return gzip.decompress(data) if path.suffix == ".gz" else data


def read_rows(path):
    """Rows of an output that keeps fields, entities as Python values."""
    form = path.name.partition(".")[2].partition(".")[0]
    if form == "parquet":
        return pq.read_table(path).to_pylist()
    text = unpacked(path).decode()
    if form == "jsonl":
        return [json.loads(line) for line in text.split("\n") if line]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="," if form == "csv" else "\t", strict=True)
    return [row | {"entities": json.loads(row["entities"])} for row in rows]


@pytest.mark.parametrize("out", forms(*OUTPUTS))
@pytest.mark.parametrize("form", forms(*INPUTS))
def test_every_input_becomes_every_output_and_keeps_its_fields(tmp_path, form, out):
    rows = write_corpus(tmp_path / f"in.{form}", TEXTS)
    target = tmp_path / f"out.{out}"
    annotate(tmp_path / f"in.{form}", target, FakePipe())
    if out.startswith(("conll", "html")):
        written = unpacked(target).decode()
        shown = '-DOCSTART-\t{{"id": "{}"}}\tO\n' if out == "conll" else ">{} (in."
        assert all((shown.format(row["id"]) in written) for row in rows if "id" in row)
        assert written.count("-DOCSTART-" if out == "conll" else "<article") == len(TEXTS)
    else:
        assert read_rows(target) == [row | {"entities": entities_of(row["text"])} for row in rows]


MANY = [f"City{number} and {number}" for number in range(40)]


@pytest.mark.parametrize("out", forms("jsonl", "csv.zst", "parquet", "conll", "html.gz"))
@pytest.mark.parametrize("form", ["jsonl.gz", "json", "tsv", "md", "parquet"])
def test_a_run_stopped_anywhere_ends_as_one_that_was_not(tmp_path, form, out):
    choose = random.Random(f"{form} {out}")
    source, target = tmp_path / f"in.{form}", tmp_path / f"out.{out}"
    write_corpus(source, MANY)
    annotate(source, target, FakePipe())
    whole = target.read_bytes()
    target.unlink()
    journal = target.with_name(f"{target.name}.journal")
    with pytest.raises(KeyboardInterrupt):
        annotate(source, target, FakePipe(interrupt_after=choose.randrange(3, 40)))
    for _ in range(3):
        data = journal.read_bytes()
        journal.write_bytes(data[: choose.randrange(1, len(data) + 1)])
        with pytest.raises(KeyboardInterrupt):
            annotate(source, target, FakePipe(interrupt_after=choose.randrange(0, 3)), resume=True)
        assert not target.exists()
    pipe = FakePipe()
    report = annotate(source, target, pipe, resume=True)
    assert report.documents == len(MANY)
    assert len(set(pipe.annotated)) == len(pipe.annotated)
    assert target.read_bytes() == whole


@pytest.mark.parametrize("out", ["csv", "tsv"])
def test_cells_that_a_spreadsheet_would_run_begin_with_an_apostrophe(tmp_path, out):
    rows = [{"=id": value, "text": "Rome"} for value in FORMULAS]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    annotate(tmp_path / "in.jsonl", tmp_path / f"out.{out}", FakePipe())
    with (tmp_path / f"out.{out}").open(newline="", encoding="utf-8") as file:
        header, *written = csv.reader(file, delimiter="," if out == "csv" else "\t", strict=True)
    assert header == ["'=id", "text", "entities"]
    kept = {"-5", "+1.5e3", "a=1", "", FORMULAS[-1]}
    assert [row[0] for row in written] == [value if value in kept else f"'{value}" for value in FORMULAS]


def test_tables_have_every_field_that_any_document_has(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a", "n": null}\n{"text": "b", "x": {"y": [1, true]}, "n": 1.5}\n')
    annotate(tmp_path / "in.jsonl", tmp_path / "out.csv", FakePipe())
    rows = read_rows(tmp_path / "out.csv")
    assert [(row["n"], row["x"]) for row in rows] == [("", ""), ("1.5", '{"y": [1, true]}')]


@pytest.mark.parametrize("form", ["txt", "md", "txt.gz"])
def test_a_whole_file_is_one_document_with_its_name(tmp_path, form):
    (tmp_path / "texts").mkdir()
    write_corpus(tmp_path / "texts" / f"one.{form}", ["Rome", "", "Oslo"])
    write_corpus(tmp_path / "texts" / f"two.{form}", [])
    target = tmp_path / "out.jsonl"
    annotate(tmp_path / "texts", target, FakePipe(), whole_file=True, file_column="file")
    assert read_rows(target) == [
        {"file": f"one.{form}", "text": "Rome\n\nOslo\n", "entities": entities_of("Rome\n\nOslo\n")},
        {"file": f"two.{form}", "text": "", "entities": []},
    ]


@pytest.mark.parametrize("out", ["jsonl", "parquet", "csv", "html"])
def test_the_file_of_each_document_can_be_kept(tmp_path, out):
    for name in ("a.parquet", "b.parquet"):
        write_corpus(tmp_path / name, ["Rome"])
    target = tmp_path / f"out.{out}"
    annotate([tmp_path / "a.parquet", tmp_path / "b.parquet"], target, FakePipe(), file_column="from")
    if out == "html":
        assert "from: b.parquet</div>" in target.read_text()
    else:
        assert [row["from"] for row in read_rows(target)] == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize("column", ["id", "entities"])
def test_a_field_to_be_added_must_be_new(tmp_path, column):
    write_corpus(tmp_path / "in.csv", ["Rome"])
    names = {"entities_column": "id"} if column == "entities" else {"file_column": "id"}
    with pytest.raises(ValueError, match="has a field 'id' already"):
        annotate(tmp_path / "in.csv", tmp_path / "out.jsonl", FakePipe(), **names)


def test_parquet_files_with_other_columns_become_one(tmp_path):
    pq.write_table(pa.table({"text": ["Rome"], "n": pa.array([1], pa.int16())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"at": pa.array([5], pa.timestamp("ns")), "text": ["Oslo"]}), tmp_path / "b.parquet")
    annotate([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "out.parquet", FakePipe())
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == ["text", "n", "at", "entities"]
    assert (table.schema.field("n").type, table.schema.field("at").type) == (pa.int16(), pa.timestamp("ns"))
    assert [(row["text"], row["n"]) for row in table.drop_columns("at").to_pylist()] == [("Rome", 1), ("Oslo", None)]
    pq.write_table(pa.table({"text": ["Oslo"], "n": ["one"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="do not go together"):
        annotate([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "new.parquet", FakePipe())


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_all_that_an_entity_has_is_kept_in_parquet(tmp_path, form):
    class Scoring(FakePipe):
        def one(self, text):
            return [entity | {"scores": {"Name": 0.75}, "truncated_at": 7} for entity in super().one(text)]

    write_corpus(tmp_path / f"in.{form}", ["Rome", ""])
    annotate(tmp_path / f"in.{form}", tmp_path / "out.parquet", Scoring())
    first, second = pq.read_table(tmp_path / "out.parquet")["entities"].to_pylist()
    assert first == [entities_of("Rome")[0] | {"scores": [("Name", 0.75)], "truncated_at": 7}]
    assert second == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[{}", "in.json is not JSON"),
        (b'{"text": "a"}\n{"text": "b"}', "must end in .jsonl"),
        (b"[\xff]", "in.json is not UTF-8"),
        (b"[5]", "item 1: not a JSON object but a number"),
    ],
    ids=["torn", "lines", "encoding", "number"],
)
def test_json_that_is_no_list_of_documents_is_refused(tmp_path, data, message):
    (tmp_path / "in.json").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        annotate(tmp_path / "in.json", tmp_path / "out.jsonl", FakePipe())


def test_json_may_hold_texts_or_one_document(tmp_path):
    (tmp_path / "in.json").write_text('["Rome", {"text": "Oslo"}]')
    (tmp_path / "one.json").write_text('{"text": "Paris"}')
    sources = [named_source(tmp_path / name) for name in ("in.json", "one.json")]
    assert [(r.source, r.text) for r in read_records(sources, Layout())] == [(0, "Rome"), (0, "Oslo"), (1, "Paris")]


def test_a_damaged_parquet_file_is_an_error_on_the_way_and_finished_work_is_kept(monkeypatch, tmp_path):
    path = tmp_path / "in.parquet"
    texts = [f"City{number} {os.urandom(9).hex()}" for number in range(6000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1500)
    data = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[middle : middle + 40] = bytes(40)
    path.write_bytes(data)
    monkeypatch.setattr("decodner_hf.corpus.job.CHECKED_BYTES", 1000)
    with pytest.raises(ValueError, match=r"in\.parquet is a damaged parquet file"):
        annotate(path, tmp_path / "out.jsonl", FakePipe())
    assert (tmp_path / "out.jsonl.journal").read_bytes().count(b"\n") > 1000


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_error_and_finished_work_is_kept(monkeypatch, tmp_path):
    write_corpus(tmp_path / "in.jsonl", MANY)
    target = tmp_path / "out.jsonl"

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("decodner_hf.corpus.run.sync", full)
        with pytest.raises(OSError, match="No space left"):
            annotate(tmp_path / "in.jsonl", target, FakePipe())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl.journal"]
    pipe = FakePipe()
    annotate(tmp_path / "in.jsonl", target, pipe, resume=True)
    assert (len(read_rows(target)), pipe.annotated) == (len(MANY), [])
