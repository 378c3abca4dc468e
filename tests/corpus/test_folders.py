"""Several inputs, and a folder of outputs."""

import json

import pytest
from fake_pipes import FakePipe, describe_fakes, entities_of

from decodner_hf.corpus import annotate

FILES = {"a.txt": ["Rome", "Oslo"], "deep/b.txt": [], "deep/c.txt": ["Paris", "x", "Lima"], "d.txt": ["Bonn"]}
ALL = ["Rome", "Oslo", "Bonn", "Paris", "x", "Lima"]  # sorted by path


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    describe_fakes(monkeypatch)


@pytest.fixture
def corpus(tmp_path):
    for name, lines in FILES.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in lines))
    return tmp_path / "in"


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def rows_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_outputs(folder):
    outputs = [name.replace(".txt", ".jsonl") for name in FILES]
    assert files_in(folder) == sorted([*outputs, "decodner.report.json"])
    for name, lines in FILES.items():
        expected = [{"text": line, "entities": entities_of(line)} for line in lines]
        assert rows_in(folder / name.replace(".txt", ".jsonl")) == expected


def test_a_folder_becomes_one_output_in_the_order_of_its_files(corpus, tmp_path):
    report = annotate(corpus, tmp_path / "out.jsonl", FakePipe())
    assert [row["text"] for row in rows_in(tmp_path / "out.jsonl")] == sorted(ALL, key=ALL.index)
    assert report.documents == len(ALL)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_becomes_a_folder(corpus, tmp_path, exists):
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    pipe = FakePipe()
    annotate(corpus, out if exists else f"{out}/", pipe)
    check_outputs(out)
    assert pipe.annotated == ALL  # one stream, whatever the files


@pytest.mark.parametrize("after", range(len(ALL)))
def test_a_folder_of_outputs_goes_on_where_it_stopped(corpus, tmp_path, after):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        annotate(corpus, f"{out}/", FakePipe(interrupt_after=after))
    assert files_in(out) == ["decodner.journal"]
    pipe = FakePipe()
    annotate(corpus, out, pipe, resume=True)
    assert pipe.annotated == ALL[after - after % 3 :]
    check_outputs(out)


@pytest.mark.parametrize("written", range(len(FILES) + 1))
def test_a_run_killed_between_two_outputs_is_completed(monkeypatch, corpus, tmp_path, written):
    from decodner_hf.corpus import run

    class KilledError(BaseException):
        pass

    count = 0

    def finish_some(path, really=run.finish):
        nonlocal count
        if count == written:
            raise KilledError
        count += 1
        really(path)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", finish_some)
        patch.setattr("decodner_hf.corpus.report.finish", finish_some)
        with pytest.raises(KilledError):
            annotate(corpus, f"{out}/", FakePipe())
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl")}
    assert len(kept) == min(written, len(FILES))
    pipe = FakePipe()
    annotate(corpus, out, pipe, resume=True)
    assert pipe.annotated == []
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    check_outputs(out)


def test_outputs_below_the_input_are_not_read(corpus):
    for out in (corpus / "results", corpus / "all.jsonl"):
        options = {} if out.suffix else {"output_format": "jsonl"}
        annotate(corpus, f"{out}/" if not out.suffix else out, FakePipe(), **options)
        annotate(corpus, out, FakePipe(), overwrite=True, **options)
        if out.suffix:
            assert [row["text"] for row in rows_in(out)] == ALL
            out.unlink()
        else:
            check_outputs(out)
            for path in out.rglob("*.json*"):
                path.unlink()
        for path in corpus.rglob("*.report.json"):
            path.unlink()


def test_a_file_of_the_input_is_not_taken_for_the_output(corpus):
    other = corpus / "e.jsonl"
    other.write_text('{"text": "precious"}\n')
    with pytest.raises(ValueError, match="both input and output"):
        annotate(corpus, other, FakePipe(), overwrite=True)
    with pytest.raises(ValueError, match="both input and output"):
        annotate(corpus, corpus, FakePipe(), overwrite=True)
    assert other.read_text() == '{"text": "precious"}\n'


def test_inputs_of_one_name_keep_their_whole_names(tmp_path):
    (tmp_path / "a.txt").write_text("Rome\n")
    (tmp_path / "a.jsonl").write_text('{"text": "Oslo"}\n')
    (tmp_path / "b.txt").write_text("Bonn\n")
    out = tmp_path / "out"
    annotate([tmp_path / name for name in ("a.txt", "a.jsonl", "b.txt")], f"{out}/", FakePipe())
    assert files_in(out) == ["a.jsonl.jsonl", "a.txt.jsonl", "b.jsonl", "decodner.report.json"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("Lima\n")
    with pytest.raises(ValueError, match="in two runs"):
        annotate([tmp_path / "a.txt", tmp_path / "other" / "a.txt"], f"{tmp_path / 'new'}/", FakePipe())


def test_the_report_says_what_was_left_out_and_why(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"Rome\n\xff\nBAD\n")
    (tmp_path / "b.jsonl").write_text('{"text": 5}\n{"text": "Steve Jobs and Oslo"}\n')
    said = []
    sources = [tmp_path / "a.txt", tmp_path / "b.jsonl"]
    annotate(sources, tmp_path / "out.jsonl", FakePipe(), on_error="skip", warn=said.append)
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert (report["documents"], report["entities"]) == (2, {"Name": 3})
    places = sorted(item["document"] for item in report["skipped"])
    assert places == ["a.txt, line 2", "a.txt, line 3", "b.jsonl, line 1"]
    assert {item["reason"].split(":")[0] for item in report["skipped"]} == {
        "not UTF-8", "BAD is refused.", "field 'text' is a number, not text"
    }  # fmt: skip
    assert len(said) == 3


def test_a_broken_document_beyond_the_checked_beginning_stops_when_it_is_reached(monkeypatch, tmp_path):
    monkeypatch.setattr("decodner_hf.corpus.job.CHECKED_BYTES", 1000)
    lines = [f"City{number}" for number in range(20_000)]
    (tmp_path / "in.txt").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    with pytest.raises(ValueError, match="line 20001: not UTF-8"):
        annotate(tmp_path / "in.txt", tmp_path / "out.jsonl", FakePipe())
    pipe = FakePipe()
    report = annotate(tmp_path / "in.txt", tmp_path / "out.jsonl", pipe, resume=True, on_error="skip", warn=print)
    assert (report.documents, len(report.skipped), pipe.annotated) == (20_000, 1, [])
