import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from decimal import Decimal
from html.parser import HTMLParser
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from decodner_cli import main as cli
from decodner_hf.corpus.annotate import stream
from decodner_hf.corpus.files import Record, read_records
from decodner_hf.corpus.rendering import conll_block, html_block, json_lines, printable, table

LOAD_PIPELINE = cli.load_pipeline  # the fixture below replaces it
MODEL = ["--model", "tiny", "--labels", "Name"]
TEXTS = ["Steve Jobs founded Apple.", "", "nobody here", 'Zoë said "Hi"', "日本 Tokyo\u2028Kyoto"]


def entities_of(text):
    return [
        {"entity_group": "Name", "score": 0.75, "word": match[0], "start": match.start(), "end": match.end()}
        for match in re.finditer(r"\b[A-Z]\w+(?: [A-Z]\w+)*", text)
    ]


class FakePipe:
    """Capitalised words are names. Packs three documents a pass, reading ahead; refuses texts that say BAD."""

    def __init__(self, interrupt_after=None):
        self.interrupt_after = interrupt_after
        self.annotated = []

    def __call__(self, inputs):
        return self.one(inputs) if isinstance(inputs, str) else self.many(inputs)

    def many(self, texts):
        while group := list(islice(texts, 3)):
            yield from [self.one(text) for text in group]

    def one(self, text):
        if "BAD" in text:
            raise ValueError("BAD is refused.")
        if len(self.annotated) == self.interrupt_after:
            raise KeyboardInterrupt
        self.annotated.append(text)
        return entities_of(text)


@pytest.fixture(autouse=True)
def pipe(monkeypatch):
    fake = FakePipe()
    monkeypatch.delenv("DECODNER_MODEL", raising=False)
    monkeypatch.setattr(cli, "load_pipeline", lambda _: fake)
    return fake


@pytest.fixture
def stdin(monkeypatch):
    def feed(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return feed


def test_a_text_becomes_a_table(capsys):
    assert cli.main([TEXTS[0], *MODEL]) == 0
    assert capsys.readouterr().out == (
        "entity   score  start  end  text\nName    0.7500      0   10  Steve Jobs\nName    0.7500     19   24  Apple\n"
    )


def test_several_texts_are_told_apart_and_may_follow_the_labels(capsys):
    assert cli.main(["tag", *MODEL, "--", "annotate", "Rome"]) == 0
    assert capsys.readouterr().out == (
        "# text 1: annotate\nno entities\n\n"
        "# text 2: Rome\nentity   score  start  end  text\nName    0.7500      0    4  Rome\n"
    )


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_holds_every_document(capsys, form):
    assert cli.main([*TEXTS, *MODEL, "--format", form]) == 0
    out = capsys.readouterr().out
    documents = json.loads(out) if form == "json" else [json.loads(line) for line in out.split("\n") if line]
    assert documents == [{"text": text, "entities": entities_of(text)} for text in TEXTS]


def test_standard_input_is_a_document_a_line(stdin, capsys):
    stdin("\ufeffRome\r\n\nnobody\x85 Zoë".encode())
    assert cli.main([*MODEL, "--format", "jsonl"]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    assert [document["text"] for document in documents] == ["Rome", "", "nobody\x85 Zoë"]


def test_standard_input_that_is_empty_is_no_error(stdin, capsys):
    stdin(b"")
    assert cli.main(MODEL) == 0
    captured = capsys.readouterr()
    assert (captured.out, "empty" in captured.err) == ("", True)


def test_standard_input_that_is_closed_is_empty(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(MODEL) == 0
    assert "standard input was empty" in capsys.readouterr().err


TYPED = """
import signal, sys, types
from itertools import islice
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
package = types.ModuleType("decodner_hf")
package.__path__ = [FOLDER]
sys.modules["decodner_hf"] = package
from decodner_cli import main as cli

def pipe(inputs):  # reads ahead, as the pipeline does
    found = [{"entity_group": "Name", "score": 0.5, "word": "Rome", "start": 0, "end": 4}]
    return found if isinstance(inputs, str) else (found for _ in list(islice(inputs, 3)))

cli.load_pipeline = lambda _: pipe
sys.exit(cli.main(["--model", "m"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_typed_line_shows_its_result_and_one_interruption_ends_the_run():
    import pty

    ours, theirs = pty.openpty()
    program = TYPED.replace("FOLDER", repr(str(Path(cli.__file__).parents[1] / "decodner_hf")))
    run = subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    timer = threading.Timer(20, run.kill)
    timer.start()
    try:
        os.write(ours, b"Rome\n")
        shown = [run.stdout.readline() for _ in range(3)]
        run.send_signal(signal.SIGINT)
        _, messages = run.communicate()
    finally:
        timer.cancel()
        os.close(ours)
        os.close(theirs)
    assert shown[2] == "Name    0.5000      0    4  Rome\n"
    assert run.returncode == 130
    assert "interrupted." in messages
    assert "Fatal" not in messages


@pytest.mark.parametrize("error", [KeyError("model"), Exception("header\ntoo small")])
def test_a_model_that_cannot_be_read_is_one_line(monkeypatch, capsys, error):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(cli, "load_pipeline", LOAD_PIPELINE)
    monkeypatch.setattr("transformers.pipeline", broken)
    assert cli.main(["text", *MODEL]) == 1
    message = " ".join(str(error).split())
    assert capsys.readouterr().err == f"decodner: error: cannot load tiny: {type(error).__name__}: {message}\n"


def test_standard_input_that_is_not_text_is_refused_with_its_line(stdin, capsys):
    stdin(b"Rome\n\xff\n")
    assert cli.main(MODEL) == 1
    assert "line 2: not UTF-8" in capsys.readouterr().err


def test_a_text_that_is_refused_is_named(capsys):
    assert cli.main(["Rome", "a BAD one", *MODEL]) == 1
    assert "decodner: error: text 2: BAD is refused." in capsys.readouterr().err


def test_a_text_that_names_a_file_is_annotated_with_a_note(tmp_path, capsys):
    (tmp_path / "Rome.txt").touch()
    assert cli.main([str(tmp_path / "Rome.txt"), *MODEL]) == 0
    assert "decodner annotate" in capsys.readouterr().err


USAGE_ERRORS = {
    "label twice": (["text", "--model", "m", "--labels", "A", "A=b"], "'A' is named twice"),
    "empty label": (["text", "--model", "m", "--labels", ""], "is not NAME"),
    "empty description": (["text", "--model", "m", "--labels", "A="], "is not NAME"),
    "threshold above 1": (["text", *MODEL, "--threshold", "1.5"], "'1.5' is not a number from 0 to 1"),
    "threshold NaN": (["text", *MODEL, "--threshold", "nan"], "'nan' is not"),
    "label threshold": (["text", *MODEL, "--label-threshold", "0.3"], "is not NAME=P"),
    "stranger": (["text", *MODEL, "--label-threshold", "City=0.3"], "City not among --labels"),
    "threshold of whom": (
        ["text", "--model", "m", "--threshold", "0.1", "--label-threshold", "A=0.3"],
        "needs --labels",
    ),
    "overlap": (["text", *MODEL, "--overlap", "some"], "invalid choice"),
    "unknown option": (["text", *MODEL, "--treshold", "0.3"], "unrecognized arguments"),
    "no output": (["annotate", "in.txt", *MODEL], "--out"),
    "conll of nested": (["annotate", "in.txt", "--out", "o.conll", *MODEL, "--overlap", "nested"], "conll"),
    "tab in a conll label": (
        ["annotate", "in.txt", "--out", "o.conll", "--model", "m", "--labels", "A\tB"],
        "'A\\tB' holds a tab",
    ),
    "resume and overwrite": (
        ["annotate", "in.txt", "--out", "o.jsonl", *MODEL, "--resume", "--overwrite"],
        "not allowed",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), USAGE_ERRORS.values(), ids=USAGE_ERRORS.keys())
def test_wrong_usage_exits_with_2_before_anything_is_loaded(pipe, capsys, arguments, message):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert pipe.annotated == []


def test_options_reach_the_pipeline(pipe, monkeypatch):
    given = {}
    pipe.model = SimpleNamespace(config=SimpleNamespace(entity_labels=["A"]))
    monkeypatch.setattr(cli, "load_pipeline", LOAD_PIPELINE)
    monkeypatch.setattr("transformers.pipeline", lambda *_, **options: given.update(options) or pipe)

    def asked(*arguments):
        given.clear()
        assert cli.main(["text", "--model", "m", *arguments]) == 0
        return {name: given.get(name) for name in ("model", "candidate_labels", "threshold", "overlap", "dtype")}

    plain = {"model": "m", "candidate_labels": None, "threshold": None, "overlap": None, "dtype": "auto"}
    assert asked() == plain
    assert asked("--threshold", "0", "--overlap", "all") == plain | {"threshold": 0.0, "overlap": "all"}
    assert asked("--label-threshold", "A=b=0.3", "--dtype", "float16") == plain | {
        "threshold": {"A=b": 0.3},
        "dtype": "float16",
    }
    labels = ("--labels", "A", "B=a = thing", "--threshold", "0.2", "--label-threshold", "B=0.7")
    assert asked(*labels) == plain | {
        "candidate_labels": {"A": None, "B": "a = thing"},
        "threshold": {"A": 0.2, "B": 0.7},
    }


@pytest.mark.parametrize(
    "arguments", [["--help"], ["annotate", "--help"], ["text", "--threshold", "7", "--model", "m"]]
)
def test_help_and_wrong_usage_import_nothing_heavy(arguments):
    program = (
        "import sys\n"
        "from decodner_command import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "code = main()\n"
        "assert not {'torch', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == (0 if "--help" in arguments else 2), run.stderr


def run_ending(body, **streams):
    """The command as a process, with `body` in place of what it does."""
    program = (
        "import atexit, sys, threading, time\n"
        "import decodner_command\n"
        "from decodner_cli import main as cli\n"
        "class Witness:\n"
        "    def __del__(self):\n"
        "        sys.stderr.write('torn down')\n"
        "witness = Witness()\n"
        f"def main():\n    {body}\n"
        "cli.main = main\n"
        "sys.exit(decodner_command.command())\n"
    )
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run([sys.executable, "-c", program], text=True, check=False, env=buffered, **streams)


def test_the_process_ends_with_its_code_once_output_threads_and_exit_handlers_are_done():
    later = "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()"
    ended = run_ending(f"print('text'); {later}; atexit.register(print, 'handler'); return 3")
    assert (ended.returncode, ended.stdout) == (3, "text\nthread\nhandler\n")
    assert ended.stderr == ""  # nothing was torn down


def test_a_process_that_fails_ends_as_any_other():
    ended = run_ending("print('text'); raise KeyError('unforeseen')")
    assert (ended.returncode, ended.stdout) == (1, "text\n")
    assert "KeyError: 'unforeseen'" in ended.stderr
    assert ended.stderr.endswith("torn down")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_at_the_end_is_reported():
    with open("/dev/full", "w") as full:
        ended = run_ending("print('text'); return 0", stdout=full)
    assert ended.returncode == 120
    assert "No space left on device" in ended.stderr
    assert "_end" not in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("shape", cli.FORMATS)
def test_a_full_disk_is_an_error_in_every_format(shape, monkeypatch, capsys):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert cli.main([TEXTS[0], *MODEL, "--format", shape]) == 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # or closing it is one, too
    assert "decodner: error: [Errno 28] No space left" in capsys.readouterr().err


def test_help_as_a_module_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "decodner_command", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "decodner_cli.main" in imported
    assert not {"torch", "transformers", "numpy", "pyarrow"} & imported


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


def read_jsonl(path):
    return [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("out", ["jsonl", "parquet", "conll", "html"])
def test_every_input_becomes_every_output(tmp_path, suffix, out):
    source, target = write_corpus(tmp_path, suffix, TEXTS), tmp_path / f"out.{out}"
    assert cli.main(["annotate", str(source), "--out", str(target), *MODEL]) == 0
    if out in ("jsonl", "parquet"):
        rows = read_jsonl(target) if out == "jsonl" else pq.read_table(target).to_pylist()
        number = {"txt": lambda _: {}, "csv": lambda index: {"id": str(index)}}.get(
            suffix, lambda index: {"id": index}
        )
        expected = [{**number(i), "text": text, "entities": entities_of(text)} for i, text in enumerate(TEXTS)]
        assert rows == expected
    else:
        text = target.read_text(encoding="utf-8")
        documents = [(text, entities_of(text)) for text in TEXTS]
        part = conll_block if out == "conll" else html_block
        position = 0
        for document in documents:
            position = text.index(part(*document), position) + len(part(*document))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, target.name])


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


def test_documents_nested_too_deeply_to_write_are_named():
    with pytest.raises(ValueError, match="line 7 is nested too deeply"):
        list(json_lines([("line 7", {"n": nested(200_000)})], print))


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.parquet.journal"]


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


def interrupted(folder, monkeypatch, after):
    source, target = write_corpus(folder, "jsonl", MANY), folder / "out.jsonl"
    arguments = ["annotate", str(source), "--out", str(target), *MODEL]
    monkeypatch.setattr(cli, "load_pipeline", lambda _: FakePipe(after))
    assert cli.main(arguments) == 130
    assert not target.exists()
    return arguments, source, target, folder / "out.jsonl.journal"


@pytest.mark.parametrize("after", [0, 1, 3, 7, 9])
def test_resume_goes_on_where_the_run_stopped(pipe, tmp_path, monkeypatch, capsys, after):
    arguments, _, target, journal = interrupted(tmp_path, monkeypatch, after)
    assert "--resume" in capsys.readouterr().err
    monkeypatch.setattr(cli, "load_pipeline", lambda _: pipe)
    assert cli.main(arguments) == 1  # neither resumed nor thrown away without a word
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*arguments, "--resume"]) == 0
    assert [row["text"] for row in read_jsonl(target)] == MANY
    assert [row["entities"] for row in read_jsonl(target)] == [entities_of(text) for text in MANY]
    assert pipe.annotated == MANY[after - after % 3 :]  # a pass packs three
    assert not journal.exists()


def test_resume_survives_a_journal_torn_at_any_byte(pipe, tmp_path, monkeypatch):
    arguments, _, target, journal = interrupted(tmp_path, monkeypatch, 9)
    monkeypatch.setattr(cli, "load_pipeline", lambda _: pipe)
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
def test_resume_refuses_another_run(pipe, tmp_path, monkeypatch, capsys, change, named):
    arguments, source, target, journal = interrupted(tmp_path, monkeypatch, 3)
    if not change:
        source.write_text(source.read_text() + '{"text": "new"}\n')
    before = journal.read_bytes()
    assert cli.main([*arguments, *change, "--resume"]) == 1
    assert f"another {named}:" in capsys.readouterr().err
    assert journal.read_bytes() == before
    monkeypatch.setattr(cli, "load_pipeline", lambda _: pipe)
    assert cli.main([*arguments, *change, "--overwrite"]) == 0
    assert len(read_jsonl(target)) == len(pipe.annotated) >= len(MANY)


@pytest.mark.skipif(sys.platform == "win32", reason="locks are those of fcntl")
@pytest.mark.parametrize("extra", [[], ["--resume"], ["--overwrite"]])
def test_a_second_run_on_the_same_output_is_refused(tmp_path, monkeypatch, capsys, extra):
    arguments, _, target, journal = interrupted(tmp_path, monkeypatch, 3)
    before, codes = journal.read_bytes(), []

    def load(_):
        codes.append(cli.main([*arguments, *extra]))
        return FakePipe()

    monkeypatch.setattr(cli, "load_pipeline", load)
    assert cli.main([*arguments, "--resume"]) == 0
    assert codes == [1]
    assert f"another run is writing {target}" in capsys.readouterr().err
    assert before.startswith(b"{")
    assert [row["text"] for row in read_jsonl(target)] == MANY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_journal_out_of_step_is_never_written_out(tmp_path, monkeypatch, capsys):
    arguments, _, target, journal = interrupted(tmp_path, monkeypatch, 9)

    class Meddling(FakePipe):
        def one(self, text):
            header, first, second, *others = journal.read_text().splitlines(keepends=True)
            journal.write_text("".join([header, second, first, *others]))
            return super().one(text)

    monkeypatch.setattr(cli, "load_pipeline", lambda _: Meddling())
    assert cli.main([*arguments, "--resume"]) == 1
    assert "holds the result of line 2 where that of line 1 should be" in capsys.readouterr().err
    assert not target.exists()


RUNTIME_ERRORS = {
    "no file": ("missing.txt", "out.jsonl", "there is no file"),
    "folder": (".", "out.jsonl", "is a folder, not a file"),
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


def test_conll_refuses_labels_that_break_a_line():
    with pytest.raises(ValueError, match="holds a tab"):
        conll_block("Rome", [{**entities_of("Rome")[0], "entity_group": "A\nB"}])


def test_conll_refuses_entities_that_overlap():
    with pytest.raises(ValueError, match="overlap"):
        conll_block(
            "New York City", [dict(entities_of("New York")[0]), {**entities_of("York")[0], "start": 4, "end": 8}]
        )


def test_an_output_that_cannot_be_finished_leaves_nothing_half_written(monkeypatch, tmp_path, capsys):
    source, target = write_corpus(tmp_path, "txt", ["Rome", "Oslo"]), tmp_path / "out.conll"
    monkeypatch.setattr(cli, "load_pipeline", lambda _: lambda texts: (entities_of(text) * 2 for text in texts))
    assert cli.main(["annotate", str(source), "--out", str(target), *MODEL]) == 1
    assert "'Rome' and 'Rome' overlap" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.conll.journal"]


def test_conll_tags_words():
    assert conll_block("In Steve Jobs's\nRome.", entities_of("In Steve Jobs's\nRome.")[1:]).split("\n\n")[1] == (
        "In\tO\nSteve\tO\nJobs\tO\n's\tO\nRome\tB-Name\n.\tO"
    )
    entity = {"entity_group": "Name", "word": "Steve Jobs", "score": 0.5, "start": 3, "end": 13}
    assert "Steve\tB-Name\nJobs\tI-Name\n's\tO" in conll_block("In Steve Jobs's", [entity])
    assert conll_block("", []) == "-DOCSTART-\tO\n\n"


class Marks(HTMLParser):
    """Collects the text outside labels and, for each label, the text its marks cover."""

    def __init__(self):
        super().__init__()
        self.text, self.labels, self.open, self.in_label = "", [], [], False

    def handle_starttag(self, tag, attributes):
        if tag == "mark":
            self.open.append((dict(attributes)["title"], len(self.text)))
        self.in_label = tag == "b"

    def handle_endtag(self, tag):
        self.in_label = False
        if tag == "mark":
            title, start = self.open.pop()
            self.labels.append((title, start, len(self.text)))

    def handle_data(self, data):
        if not self.in_label:
            self.text += data


@settings(deadline=None, max_examples=150)
@example(text="a <b> &c", places=[(0, 6), (5, 8), (5, 6)])
@given(
    text=st.text(
        st.sampled_from('ab<&>"é日\n') | st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12
    ),
    places=st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12)), max_size=5),
)
def test_html_marks_exactly_the_entities_even_if_they_cross(text, places):
    places = {(start, min(end, len(text))) for start, end in places if start < min(end, len(text))}
    entities = [
        {"entity_group": f"<{number}>", "score": 0.5, "start": start, "end": end, "word": text[start:end]}
        for number, (start, end) in enumerate(sorted(places))
    ]
    parser = Marks()
    parser.feed(html_block(text, entities))
    parser.close()
    assert parser.text.removesuffix("\n") == text.removesuffix("\n") or parser.text == text + "\n"
    assert parser.open == []
    for entity in entities:
        pieces = sorted(place for title, *place in parser.labels if title.startswith(entity["entity_group"]))
        assert pieces[0][0] == entity["start"]
        assert pieces[-1][1] == entity["end"]
        assert all(one[1] == other[0] for one, other in pairwise(pieces))


def test_terminals_get_no_control_characters():
    assert printable("a\x1b[31m\n\ud800é") == "a\\x1b[31m\\n\\ud800é"
    assert table(entities_of("")) == ""


def records(*texts):
    return iter([Record(str(index), text, {}) for index, text in enumerate(texts)])


@pytest.mark.parametrize("broken_pipe", [lambda _: iter([]), lambda texts: (next(texts) and [] for _ in range(1))])
def test_a_pipeline_that_loses_a_document_is_an_error(broken_pipe):
    with pytest.raises(RuntimeError, match="result for every document"):
        list(stream(broken_pipe, records("a", "b")))


def test_a_failure_to_read_is_raised_after_what_was_read():
    def failing():
        yield from records("Rome", "BAD")
        raise OSError("disk")

    results = []
    with pytest.raises(OSError, match="disk"):
        results.extend(stream(FakePipe(), failing()))
    seen = stream(FakePipe(), failing())
    assert [next(seen)[1], type(next(seen)[1])] == [entities_of("Rome"), ValueError]


def test_csv_quotes_and_long_fields_are_read(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text('\ufefftext,n\n"a ""b""\nc",1\n\n' + "x" * 200_000 + ",2\n", encoding="utf-8")
    assert [record.text for record in read_records(path, "text")] == ['a "b"\nc', "x" * 200_000]
    assert [record.place for record in read_records(path, "text")] == ["line 2", "line 5"]
