import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_pipes import MODEL, TEXTS, entities_of

from decodner_cli import main as cli
from decodner_cli import pipeline_arguments, tag
from decodner_hf.core import configuration, pipeline_io


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
import signal, sys
from itertools import islice
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
from decodner_cli import main, tag

def pipe(inputs):  # reads ahead, as the pipeline does
    found = [{"entity_group": "Name", "score": 0.5, "word": "Rome", "start": 0, "end": 4}]
    return found if isinstance(inputs, str) else (found for _ in list(islice(inputs, 3)))

tag.load_pipeline = lambda _: pipe
sys.exit(main.main(["--model", "m"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_typed_line_shows_its_result_and_one_interruption_ends_the_run():
    import pty

    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-c", TYPED], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    timer = threading.Timer(300, run.kill)
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
    "labels with commas": (["text", "--model", "m", "--labels", "person,company"], "--labels person company"),
    "no command": (["tagg", "x", "--model", "m"], "did you mean `decodner tag`?"),
    "no command in capitals": (["Annotate", "in.txt", "--out", "o.jsonl"], "did you mean `decodner annotate`?"),
    "multi-label": (["text", *MODEL, "--multi-label"], "needs --overlap all"),
    "span words": (["text", *MODEL, "--max-span-words", "0"], "'0' is not a whole number of at least 1"),
    "labels twice over": (["text", *MODEL, "--labels-file", "f"], "not allowed"),
    "no labels file": (["text", "--model", "m", "--labels-file", "none.txt"], "none.txt cannot be read"),
    "standard input twice": (["annotate", "-", "-", "--out", "o.jsonl", *MODEL], "can be read once"),
    "resume of standard output": (["annotate", "-", "--out", "-", "--resume", *MODEL], "--resume"),
    "conll by format": (["annotate", "-", "--out", "-", "--format", "conll", *MODEL, "--overlap", "all"], "conll"),
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("shape", tag.FORMATS)
def test_a_full_disk_is_an_error_in_every_format(shape, monkeypatch, capsys):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert cli.main([TEXTS[0], *MODEL, "--format", shape]) == 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # or closing it is one, too
    assert "decodner: error: [Errno 28] No space left" in capsys.readouterr().err


LABEL_FILES = {
    "list.json": '["person", "a, b"]',
    "object.json": '{"person": null, "a, b": "two letters"}',
    "lines.txt": "\ufeffperson\n\n a, b = two = letters \n",
}


@pytest.mark.parametrize("name", LABEL_FILES)
def test_labels_come_from_a_file(tmp_path, load, pipe, name):
    asked = []
    load(lambda options: asked.append(options.labels) or pipe)
    (tmp_path / name).write_text(LABEL_FILES[name], encoding="utf-8")
    assert cli.main(["text", "--model", "m", "--labels-file", str(tmp_path / name)]) == 0
    note = {"list.json": None, "object.json": "two letters", "lines.txt": "two = letters"}[name]
    assert asked == [{"person": None, "a, b": note}]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[1]", '{"a": 1}', '[""]', '{"a": ""}', "{", '["a", "a"]', '{"a": null, "a": "b"}', "7"]
)
def test_a_labels_file_without_labels_is_wrong_usage(tmp_path, capsys, text):
    path = tmp_path / "labels.json"
    path.write_text(text)
    assert cli.main(["text", "--model", "m", "--labels-file", str(path)]) == 2
    assert f"argument --labels-file: {path}" in capsys.readouterr().err


def test_a_text_that_resembles_a_command_is_a_text(capsys):
    for arguments in (["Tags"], ["tag", "tagg", "x"], ["tag it", "x"]):
        assert cli.main([*arguments, *(["--"] if arguments[0] == "tag" else [])]) == 0
    assert "tagg" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("decodner ")


def test_the_choices_are_those_of_the_pipeline():
    assert pipeline_arguments.OVERLAPS == configuration.OVERLAPS
    assert pipeline_arguments.LONG_DOCUMENTS == pipeline_io.LONG_DOCUMENTS
