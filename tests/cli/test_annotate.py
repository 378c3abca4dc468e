import csv
import json
import re
import sys
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_pipes import MODEL, TEXTS, FakePipe, entities_of

from decodner_cli import main as cli
from decodner_hf.corpus.html_view import html_block
from decodner_hf.corpus.rendering import conll_block


def write_corpus(folder, suffix, texts):
    path = folder / f"in.{suffix}"
    rows = [{"id": index, "text": text} for index, text in enumerate(texts)]
    if suffix == "parquet":
        pq.write_table(pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())}), path)
    elif suffix == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [json.dumps(row) for row in rows] if suffix == "jsonl" else texts
        path.write_bytes("".join(line + "\n" for line in lines).encode())
    return path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def read_jsonl(path):
    return [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("out", ["jsonl", "parquet", "conll", "html"])
def test_every_input_becomes_every_output(tmp_path, suffix, out):
    source, target = write_corpus(tmp_path, suffix, TEXTS), tmp_path / f"out.{out}"
    assert cli.main(["annotate", str(source), "--out", str(target), *MODEL]) == 0
    number = {"txt": lambda _: {}, "csv": lambda index: {"id": str(index)}}.get(suffix, lambda index: {"id": index})
    if out in ("jsonl", "parquet"):
        rows = read_jsonl(target) if out == "jsonl" else pq.read_table(target).to_pylist()
        expected = [{**number(i), "text": text, "entities": entities_of(text)} for i, text in enumerate(TEXTS)]
        assert rows == expected
    else:
        written = target.read_text(encoding="utf-8")
        position = 0
        for index, text in enumerate(TEXTS):
            blocks = {"conll": conll_block(text, entities_of(text), number(index))}
            document = blocks.get(out) or html_block(text, entities_of(text))
            position = written.index(document, position) + len(document)
    assert names_in(tmp_path) == sorted([source.name, target.name, f"{target.name}.report.json"])


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "parquet"])
def test_a_file_without_documents_gives_an_output_without_documents(tmp_path, suffix):
    source = write_corpus(tmp_path, suffix, [])
    for out in ("jsonl", "parquet"):
        target = tmp_path / f"out.{out}"
        assert cli.main(["annotate", str(source), "--out", str(target), *MODEL]) == 0
        assert (read_jsonl(target) if out == "jsonl" else pq.read_table(target).to_pylist()) == []


def test_other_columns_and_names_are_served(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"body": "Rome", "entities": 1}\n\n{"body": "\\ud800", "n": [null]}')
    arguments = ["annotate", str(source), "--out", str(target), "--text-column", "body", *MODEL]
    assert cli.main(arguments) == 1
    assert cli.main([*arguments, "--entities-column", "found"]) == 0
    assert read_jsonl(target) == [
        {"body": "Rome", "entities": 1, "found": entities_of("Rome")},
        {"body": "\ud800", "n": [None], "found": []},
    ]


def test_parquet_takes_fields_that_come_late_and_refuses_types_that_change(tmp_path, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    arguments = ["annotate", str(source), "--out", str(target), *MODEL]
    source.write_text('{"text": "", "a": 2}\n' * 1500 + '{"text": "Rome", "a": 1.5, "b": ["x"]}\n')
    assert cli.main(arguments) == 0
    assert pq.read_table(target).to_pylist()[-1] == {
        "text": "Rome", "a": 1.5, "b": ["x"], "entities": entities_of("Rome")
    }  # fmt: skip
    source.write_text('{"text": "", "a": "1"}\n' * 1500 + '{"text": "Rome", "a": 1}\n')
    target.unlink()
    assert cli.main(arguments) == 1
    assert "write .jsonl instead" in capsys.readouterr().err
    assert not target.exists()


def typed_table():
    columns = {
        "text": pa.array(["Rome", None, "Oslo"]),
        "ns": pa.array([1, None, 1_700_000_000_000_000_001], pa.timestamp("ns", "UTC")),
        "int32": pa.array([1, None, 3], pa.int32()),
        "half": pa.array([1.5, None, float("nan")], pa.float16()),
        "decimal": pa.array([Decimal("1.10"), None, Decimal("-2.00")], pa.decimal128(9, 2)),
        "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int8())),
        "uint64": pa.array([2**64 - 1, None, 0], pa.uint64()),
        "empty": pa.nulls(3),
        "category": pa.array(["x", None, "y"]).dictionary_encode(),
    }
    return pa.table(columns).replace_schema_metadata({"kept": "yes"})


@pytest.mark.parametrize("kept", [[0, 2], [0], []])
def test_parquet_to_parquet_changes_no_column(tmp_path, kept):
    source, target, table_of_all = tmp_path / "in.parquet", tmp_path / "out.parquet", typed_table()
    given = table_of_all.slice(0, max(kept, default=-1) + 1)
    pq.write_table(given, source)
    assert cli.main(["annotate", str(source), "--out", str(target), *MODEL, "--on-error", "skip"]) == 0
    written = pq.read_table(target)
    assert written.schema.names == [*given.schema.names, "entities"]
    assert written["entities"].to_pylist() == [entities_of(table_of_all["text"][row].as_py()) for row in kept]
    rest, expected = written.drop_columns("entities"), pq.read_table(source).take(pa.array(kept, pa.int64()))
    assert rest.schema.equals(expected.schema, check_metadata=True)
    assert str(rest.to_pylist()) == str(expected.to_pylist())  # NaN is not equal to itself


def test_parquet_rows_keep_their_entities_beyond_a_batch(tmp_path):
    texts = [f"City{number}" if number % 7 else None for number in range(2500)]
    source, target = write_corpus(tmp_path, "parquet", texts), tmp_path / "out.parquet"
    assert cli.main(["annotate", str(source), "--out", str(target), *MODEL, "--on-error", "skip"]) == 0
    assert pq.read_table(target).to_pylist() == [
        {"id": index, "text": text, "entities": entities_of(text)} for index, text in enumerate(texts) if text
    ]


def test_times_beyond_those_of_python_are_copied_and_shown_as_text(tmp_path):
    source, seconds = tmp_path / "in.parquet", pa.array([2**38], pa.timestamp("s"))
    pq.write_table(pa.table({"text": ["Rome"], "at": seconds.cast(pa.timestamp("ms"))}), source)
    for out in ("parquet", "jsonl"):
        assert cli.main(["annotate", str(source), "--out", str(tmp_path / f"out.{out}"), *MODEL]) == 0
    assert pq.read_table(tmp_path / "out.parquet")["at"].equals(pq.read_table(source)["at"])
    assert read_jsonl(tmp_path / "out.jsonl")[0]["at"].startswith("10680-")


def test_a_parquet_column_named_twice_is_refused_by_name(tmp_path, capsys):
    source = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["Rome"])] * 3, ["text", "a", "a"]), source)
    assert cli.main(["annotate", str(source), "--out", str(tmp_path / "o.jsonl"), *MODEL]) == 1
    assert "named twice: 'a'" in capsys.readouterr().err


@pytest.mark.parametrize("value", ['"\\ud800"', "18446744073709551616", '"a"'])
def test_values_that_parquet_cannot_hold_are_named_and_the_journal_stays(tmp_path, capsys, value):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    source.write_text('{"text": "Rome", "a": 1}\n' * 2 + f'{{"text": "Oslo", "a": {value}}}\n')
    assert cli.main(["annotate", str(source), "--out", str(target), *MODEL]) == 1
    assert "'a' at line 3: " in capsys.readouterr().err
    assert names_in(tmp_path) == ["in.jsonl", "out.parquet.journal"]


def test_json_output_has_null_where_a_number_is_not_finite(tmp_path, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "", "n": NaN, "m": [{"k": -1e999}]}\n{"text": "", "n": 1.5, "m": [Infinity]}\n')
    assert cli.main(["annotate", str(source), "--out", str(target), *MODEL]) == 0
    assert [(row["n"], row["m"]) for row in read_jsonl(target)] == [(None, [{"k": None}]), (1.5, [None])]
    assert capsys.readouterr().err.count("written as null") == 1


BROKEN = {
    "jsonl": (
        b'{"text": "Rome"}\n{"text": \n[1]\n{"text": 5}\n{"body": ""}\n\xff\n{"text": "", "n": '
        + b"9" * 5000
        + b'}\n{"text": "", "n": '
        + b"[" * 200_000
        + b"]" * 200_000
        + b'}\n{"text": "Paris"}\n',
        [2, 3, 4, 5, 6, 7, 8],
    ),
    "txt": (b"Rome\n\xff\xfe\nParis\n", [2]),
    "csv": (b'id,text\n1,Rome\n2\n3,"a"b\n4,\xff\n5,Paris\n', [3, 4, 5]),
}


@pytest.mark.parametrize("suffix", BROKEN)
def test_a_broken_record_stops_before_the_model_or_is_skipped(pipe, tmp_path, capsys, suffix):
    data, lines = BROKEN[suffix]
    source, target = tmp_path / f"in.{suffix}", tmp_path / "out.jsonl"
    source.write_bytes(data)
    arguments = ["annotate", str(source), "--out", str(target), *MODEL]
    assert cli.main(arguments) == 1
    assert f"line {lines[0]}: " in capsys.readouterr().err
    assert pipe.annotated == []
    assert list(tmp_path.iterdir()) == [source]
    assert cli.main([*arguments, "--on-error", "skip"]) == 0
    assert [row["text"] for row in read_jsonl(target)] == ["Rome", "Paris"]
    assert re.findall(r"line (\d+) is left out", capsys.readouterr().err) == [str(line) for line in lines]


def test_a_document_the_model_refuses_stops_or_is_skipped(tmp_path, capsys):
    texts = ["Rome", "x", "BAD", "Paris", "BAD", "BAD", "Oslo", "end"]
    source, target = write_corpus(tmp_path, "txt", texts), tmp_path / "out.jsonl"
    arguments = ["annotate", str(source), "--out", str(target), *MODEL]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert "line 3: BAD is refused." in error
    assert "--resume" in error
    assert not target.exists()
    assert cli.main([*arguments, "--resume", "--on-error", "skip"]) == 0
    assert [row["text"] for row in read_jsonl(target)] == ["Rome", "x", "Paris", "Oslo", "end"]
    assert re.findall(r"line (\d) is left out", capsys.readouterr().err) == ["3", "5", "6"]


def test_an_output_that_exists_is_kept_unless_overwritten(tmp_path, capsys):
    source, target = write_corpus(tmp_path, "txt", ["Rome"]), tmp_path / "out.jsonl"
    target.write_text("precious")
    arguments = ["annotate", str(source), "--out", str(target), *MODEL]
    for extra in ([], ["--resume"]):
        assert cli.main([*arguments, *extra]) == 1
        assert "--overwrite" in capsys.readouterr().err
        assert target.read_text() == "precious"
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert len(read_jsonl(target)) == 1


MANY = [f"City{number} and {number}" for number in range(10)]


def asked_of(options, **kwargs):
    """A fake that says what it was asked for."""
    return FakePipe(settings={"candidate_labels": options.labels, "threshold": options.threshold}, **kwargs)


def same(pipe, options):
    pipe.fingerprint, pipe.settings = options.model, asked_of(options).settings
    return pipe


def interrupted(folder, load, after):
    source, target = write_corpus(folder, "jsonl", MANY), folder / "out.jsonl"
    arguments = ["annotate", str(source), "--out", str(target), *MODEL]
    load(lambda options: asked_of(options, interrupt_after=after, fingerprint=options.model))
    assert cli.main(arguments) == 130
    assert not target.exists()
    return arguments, source, target, folder / "out.jsonl.journal"


@pytest.mark.parametrize("after", [0, 1, 3, 7, 9])
def test_resume_goes_on_where_the_run_stopped(pipe, tmp_path, load, capsys, after):
    arguments, _, target, journal = interrupted(tmp_path, load, after)
    assert "--resume" in capsys.readouterr().err
    load(lambda options: same(pipe, options))
    assert cli.main(arguments) == 1  # neither resumed nor thrown away without a word
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*arguments, "--resume"]) == 0
    assert [row["text"] for row in read_jsonl(target)] == MANY
    assert [row["entities"] for row in read_jsonl(target)] == [entities_of(text) for text in MANY]
    assert pipe.annotated == MANY[after - after % 3 :]  # a pass packs three
    assert not journal.exists()


def test_resume_survives_a_journal_torn_at_any_byte(pipe, tmp_path, load):
    arguments, _, target, journal = interrupted(tmp_path, load, 9)
    load(lambda options: same(pipe, options))
    written = journal.read_bytes()
    lines = written.count(b"\n") - 1
    assert lines == 9
    for size in [*range(0, len(written), 11), len(written) - 1]:
        for tail in (b"", b"\0\0\n"):
            pipe.annotated.clear()
            journal.write_bytes(written[:size] + tail)
            if tail and size <= written.index(b"\n"):
                continue  # a header of another run, refused below
            assert cli.main([*arguments, "--resume"]) == 0
            assert [row["text"] for row in read_jsonl(target)] == MANY
            assert pipe.annotated == MANY[max(written[:size].count(b"\n") - 1, 0) :]
            target.unlink()


@pytest.mark.parametrize(
    ("change", "named"),
    {
        "labels": (["--labels", "City"], "labels"),
        "threshold": (["--threshold", "0.1"], "threshold"),
        "model": (["--model", "other"], "model"),
        "input": ([], "input"),
    }.values(),
    ids=["labels", "threshold", "model", "input"],
)
def test_resume_refuses_another_run(tmp_path, load, capsys, change, named):
    arguments, source, target, journal = interrupted(tmp_path, load, 3)
    if not change:
        source.write_text(source.read_text() + '{"text": "new"}\n')
    before = journal.read_bytes()
    load(lambda options: asked_of(options, fingerprint=options.model))
    assert cli.main([*arguments, *change, "--resume"]) == 1
    assert f"another {named}:" in capsys.readouterr().err
    assert journal.read_bytes() == before
    assert cli.main([*arguments, *change, "--overwrite"]) == 0
    assert len(read_jsonl(target)) >= len(MANY)


def test_resume_refuses_another_model_under_the_same_path(tmp_path, load, capsys):
    arguments, _, target, _ = interrupted(tmp_path, load, 3)
    load(lambda options: asked_of(options, fingerprint="trained further"))
    assert cli.main([*arguments, "--resume"]) == 1
    assert "another model:" in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="locks are those of fcntl")
@pytest.mark.parametrize("extra", [[], ["--resume"], ["--overwrite"]])
def test_a_second_run_on_the_same_output_is_refused(tmp_path, load, capsys, extra):
    arguments, _, target, journal = interrupted(tmp_path, load, 3)
    before, codes = journal.read_bytes(), []

    def load_meanwhile(options):
        codes.append(cli.main([*arguments, *extra]))
        return same(FakePipe(), options)

    load(load_meanwhile)
    assert cli.main([*arguments, "--resume"]) == 0
    assert codes == [1]
    assert f"another run is writing {target}" in capsys.readouterr().err
    assert before
    assert [row["text"] for row in read_jsonl(target)] == MANY
    assert names_in(tmp_path) == ["in.jsonl", "out.jsonl", "out.jsonl.report.json"]


def test_a_journal_out_of_step_is_never_written_out(tmp_path, load, capsys):
    arguments, _, target, journal = interrupted(tmp_path, load, 9)

    class Meddling(FakePipe):
        def one(self, text):
            header, first, second, *others = journal.read_text().splitlines(keepends=True)
            journal.write_text("".join([header, second, first, *others]))
            return super().one(text)

    load(lambda options: same(Meddling(), options))
    assert cli.main([*arguments, "--resume"]) == 1
    assert "holds the result of line 2 where that of line 1 should be" in capsys.readouterr().err
    assert not target.exists()


RUNTIME_ERRORS = {
    "no file": ("missing.txt", "out.jsonl", "there is no file"),
    "input suffix": ("in.pdf", "out.jsonl", "cannot read 'in.pdf'"),
    "output suffix": ("in.txt", "out.xml", "cannot write 'out.xml'"),
    "no output folder": ("in.txt", "none/out.jsonl", "there is no folder"),
    "same file": ("in.jsonl", "in.jsonl", "both input and output"),
    "no column": ("in.csv", "out.jsonl", "no column 'text'"),
    "other delimiter": ("in2.csv", "out.jsonl", "separated by ';'"),
    "not parquet": ("in.parquet", "out.jsonl", "not a parquet file"),
}


@pytest.mark.parametrize(("source", "target", "message"), RUNTIME_ERRORS.values(), ids=RUNTIME_ERRORS.keys())
def test_files_that_cannot_be_served_are_refused(tmp_path, capsys, source, target, message):
    for name in ("in.txt", "in.jsonl", "in.pdf", "in.csv", "in.parquet"):
        (tmp_path / name).write_text("id,body\n")
    (tmp_path / "in2.csv").write_text("id;text\n1;Rome\n")
    before = sorted(tmp_path.iterdir())
    assert cli.main(["annotate", str(tmp_path / source), "--out", str(tmp_path / target), *MODEL]) == 1
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_that_cannot_be_finished_leaves_nothing_half_written(load, tmp_path, capsys):
    source, target = write_corpus(tmp_path, "txt", ["Rome", "Oslo"]), tmp_path / "out.conll"

    class Doubling(FakePipe):
        def one(self, text):
            return super().one(text) * 2

    load(lambda _: Doubling())
    assert cli.main(["annotate", str(source), "--out", str(target), *MODEL]) == 1
    assert "'Rome' and 'Rome' overlap" in capsys.readouterr().err
    assert names_in(tmp_path) == ["in.txt", "out.conll.journal"]


LINES = [json.dumps({"text": text, "n": number}) for number, text in enumerate(TEXTS)]
ANSWERS = [{"text": text, "n": number, "entities": entities_of(text)} for number, text in enumerate(TEXTS)]


def test_standard_input_goes_to_standard_output_at_once(stdin, capsysbinary):
    stdin("\n".join(LINES).encode())
    assert cli.main(["annotate", "-", "--input-format", "jsonl", "--out", "-", *MODEL]) == 0
    assert [json.loads(line) for line in capsysbinary.readouterr().out.split(b"\n") if line] == ANSWERS


def test_what_comes_before_a_broken_line_is_written(stdin, capsysbinary):
    stdin("\n".join([*LINES, "{"]).encode())
    assert cli.main(["annotate", "-", "--input-format", "jsonl", "--out", "-", *MODEL]) == 1
    captured = capsysbinary.readouterr()
    assert [json.loads(line) for line in captured.out.split(b"\n") if line] == ANSWERS
    assert b"standard input, line 6: not JSON" in captured.err


def test_a_table_on_standard_output_has_all_columns(stdin, capsysbinary):
    stdin(b'{"text": "Rome"}\n{"text": "Oslo", "n": 1}\n')
    assert cli.main(["annotate", "-", "--input-format", "jsonl", "--out", "-", "--format", "tsv", *MODEL]) == 0
    captured = capsysbinary.readouterr()
    assert captured.out.split(b"\r\n")[0] == b"text\tn\tentities"
    assert captured.out.count(b"\r\n") == 3
    assert b"journal" not in captured.err


def test_standard_input_becomes_a_file_and_can_be_resumed(stdin, load, pipe, tmp_path, capsys):
    arguments = ["annotate", "-", "--input-format", "jsonl", "--out", str(tmp_path / "out.jsonl"), *MODEL]
    data = "".join(json.dumps({"text": text}) + "\n" for text in MANY).encode()
    stdin(data)
    load(lambda options: asked_of(options, interrupt_after=6, fingerprint=options.model))
    assert cli.main(arguments) == 130
    assert names_in(tmp_path) == ["out.jsonl.journal", "out.jsonl.stdin.jsonl"]
    load(lambda options: same(pipe, options))
    stdin(b"")
    assert cli.main(arguments) == 1
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*arguments, "--resume"]) == 0
    assert [row["text"] for row in read_jsonl(tmp_path / "out.jsonl")] == MANY
    assert pipe.annotated == MANY[6:]
    assert names_in(tmp_path) == ["out.jsonl", "out.jsonl.report.json"]
    stdin(data)
    assert cli.main([*arguments, "--resume"]) == 0
    assert "complete already" in capsys.readouterr().err
    stdin(b'{"text": "Rome"}')
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert [row["text"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["Rome"]


def test_standard_input_that_is_broken_leaves_nothing_behind(stdin, tmp_path):
    stdin(b"Rome\n\xff\n")
    assert cli.main(["annotate", "-", "--out", str(tmp_path / "out.jsonl"), *MODEL]) == 1
    assert names_in(tmp_path) == []


def test_several_inputs_become_a_folder(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for suffix in ("txt", "csv"):
        write_corpus(tmp_path / "in", suffix, TEXTS[:1])
    out = tmp_path / "out"
    assert cli.main(["annotate", f"{tmp_path}/in/*", "--out", f"{out}/", "--format", "csv", *MODEL]) == 0
    assert names_in(out) == ["decodner.report.json", "in.csv.csv", "in.txt.csv"]
    assert "complete: 2 documents annotated" in capsys.readouterr().err
    assert cli.main(["annotate", f"{tmp_path}/in/*", "--out", str(out), "--format", "csv", "--resume", *MODEL]) == 0
    assert "complete already: 2 documents" in capsys.readouterr().err


def test_whole_files_have_their_names(tmp_path):
    (tmp_path / "a.md").write_text("# Rome\n\nOslo\n")
    arguments = ["annotate", str(tmp_path / "a.md"), "--out", str(tmp_path / "out.jsonl"), "--whole-file", *MODEL]
    assert cli.main(arguments) == 0
    (row,) = read_jsonl(tmp_path / "out.jsonl")
    assert (row["file"], row["text"]) == ("a.md", "# Rome\n\nOslo\n")
