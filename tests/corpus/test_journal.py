"""Runs that stop at any moment, and what is left under their files' names."""

import json
import os
import sys

import pytest
from fake_pipes import FakePipe, describe_fakes, entities_of

from decodner_hf.corpus import annotate
from decodner_hf.corpus.run import Journal

MANY = [f"City{number} and {number}" for number in range(10)]
SIDE_FILES = ("journal", "unfinished", "lock")


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    describe_fakes(monkeypatch)


@pytest.fixture
def files(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in MANY))
    return source, tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"


def texts_in(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["entities"] for row in rows] == [entities_of(row["text"]) for row in rows]
    return [row["text"] for row in rows]


def interrupt(source, target, after=9):
    with pytest.raises(KeyboardInterrupt):
        annotate(source, target, FakePipe(interrupt_after=after))


class KilledError(BaseException):
    pass


def kill_at(monkeypatch, where, before):
    """Ends the run at one of the steps after the last document, before or after it."""
    module, _, name = where.rpartition(".")
    owner = sys.modules.get(module, Journal)
    step = getattr(owner, name)

    def killed(*arguments):
        if not before:
            step(*arguments)
        raise KilledError

    monkeypatch.setattr(owner, name, killed)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("where", ["decodner_hf.corpus.run.finish", "decodner_hf.corpus.report.finish", "remove"])
def test_a_run_killed_while_it_ends_is_completed_by_resume(monkeypatch, files, where, before):
    source, target, _ = files
    interrupt(source, target)
    with monkeypatch.context() as patch:
        kill_at(patch, where, before)
        with pytest.raises(KilledError):
            annotate(source, target, FakePipe(), resume=True)
    pipe = FakePipe()
    report = annotate(source, target, pipe, resume=True)
    assert (report.documents, pipe.annotated) == (len(MANY), [])
    assert texts_in(target) == MANY
    assert sorted(path.name for path in target.parent.iterdir()) == [
        "in.jsonl", "out.jsonl", "out.jsonl.report.json"
    ]  # fmt: skip


def test_resuming_a_complete_run_changes_nothing(files):
    source, target, _ = files
    annotate(source, target, FakePipe())
    before, pipe = target.stat(), FakePipe()
    report = annotate(source, target, pipe, resume=True)
    assert (report.was_complete, report.documents, pipe.annotated) == (True, len(MANY), [])
    assert target.stat() == before


@pytest.mark.parametrize("other", ["model", "output", "no report"])
def test_an_output_of_another_run_is_not_taken_for_a_complete_one(files, other):
    source, target, _ = files
    annotate(source, target, FakePipe())
    pipe = FakePipe(fingerprint="another model" if other == "model" else "one model")
    if other == "output":
        target.write_text("precious")
    if other == "no report":
        target.with_name("out.jsonl.report.json").unlink()
    before = target.read_bytes()
    error, message = (ValueError, "another model") if other == "model" else (FileExistsError, "--overwrite")
    with pytest.raises(error, match=message):
        annotate(source, target, pipe, resume=True)
    assert target.read_bytes() == before


def test_an_output_that_appears_during_a_run_is_kept(files):
    source, target, _ = files
    interrupt(source, target)
    target.write_text("precious")
    with pytest.raises(FileExistsError, match="did not when the run began"):
        annotate(source, target, FakePipe(), resume=True)
    assert target.read_text() == "precious"
    target.unlink()
    pipe = FakePipe()
    annotate(source, target, pipe, resume=True)
    assert (texts_in(target), pipe.annotated) == (MANY, [])


def test_a_run_that_overwrites_can_be_resumed(files):
    source, target, _ = files
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        annotate(source, target, FakePipe(interrupt_after=6), overwrite=True)
    assert target.read_text() == "old"
    pipe = FakePipe()
    annotate(source, target, pipe, resume=True)
    assert (texts_in(target), pipe.annotated) == (MANY, MANY[6:])


@pytest.mark.parametrize("place", ["name", "score", "line end", "header"])
def test_a_damaged_journal_is_an_error_at_once(files, place):
    source, target, journal = files
    interrupt(source, target)
    old, new = {
        "name": (b'"City1"', b'"Citi1"'),
        "score": (b"0.75", b"0.95"),
        "line end": (b"}}]\n", b"}}]\0"),
        "header": (b"kind", b"find"),
    }[place]
    damaged = journal.read_bytes().replace(old, new, 1)
    journal.write_bytes(damaged)
    pipe = FakePipe()
    with pytest.raises(ValueError, match="--overwrite"):
        annotate(source, target, pipe, resume=True)
    assert pipe.annotated == []
    assert journal.read_bytes() == damaged
    assert not target.exists()
    annotate(source, target, pipe, overwrite=True)
    assert texts_in(target) == MANY


def test_what_a_damaged_journal_advises_helps(files):
    source, target, journal = files
    interrupt(source, target)
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5].replace(b"0.75", b"0.95")
    journal.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match="line 6: remove that line and all lines after it to keep the first 4 doc"):
        annotate(source, target, FakePipe(), resume=True)
    journal.write_bytes(b"".join(lines[:5]))
    pipe = FakePipe()
    annotate(source, target, pipe, resume=True)
    assert (texts_in(target), pipe.annotated) == (MANY, MANY[4:])


def test_results_out_of_order_are_an_error_at_once(files):
    source, target, journal = files
    interrupt(source, target)
    header, first, second, *others = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([header, second, first, *others]))
    with pytest.raises(ValueError, match="holds the result of line 2 where that of line 1 should be"):
        annotate(source, target, FakePipe(), resume=True)


def test_a_file_that_is_no_journal_is_not_touched(files):
    source, target, journal = files
    journal.write_text("notes")
    for options in ({}, {"resume": True}):
        with pytest.raises(ValueError, match="no journal"):
            annotate(source, target, FakePipe(), **options)
        assert journal.read_text() == "notes"


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege there")
@pytest.mark.parametrize("kind", SIDE_FILES)
def test_side_files_do_not_follow_symbolic_links(files, tmp_path_factory, kind):
    source, target, _ = files
    victim = tmp_path_factory.mktemp("elsewhere") / "victim"
    victim.write_text("precious")
    link = target.with_name(f"{target.name}.{kind}")
    link.symlink_to(victim)
    if kind == "unfinished":
        annotate(source, target, FakePipe())  # a left-over under this name is always replaced
        assert texts_in(target) == MANY
    else:
        with pytest.raises(OSError, match="symbolic link"):
            annotate(source, target, FakePipe())
    assert victim.read_text() == "precious"


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege there")
def test_a_link_without_a_file_is_no_way_to_create_one(files, tmp_path):
    source, target, _ = files
    for name in ("out.jsonl.journal", "out.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / "new")
        with pytest.raises((OSError, ValueError), match="symbolic link"):
            annotate(source, target, FakePipe())
        assert not (tmp_path / "new").exists()
        (tmp_path / name).unlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_or_a_device_as_output_is_refused(files, tmp_path):
    source, _, _ = files
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match="is not a file"):
        annotate(source, tmp_path / "pipe.jsonl", FakePipe())
    with pytest.raises(ValueError, match="is not a file"):
        annotate(source, "/dev/null", FakePipe(), output_format="jsonl")
