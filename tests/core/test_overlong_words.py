"""Words that no window can hold are not read; the text around them is, and reports say so."""

import base64
import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pipelines import tiny_native, tiny_pipeline

EVERYTHING = {"threshold": 0.0, "overlap": "all"}
TEXT = "Tim Cook met Steve Jobs near Apple."
BLOB = base64.b64encode(random.Random(0).randbytes(900)).decode().replace("/", "a").replace("+", "b")


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(model=tiny_native(max_position_embeddings=256), candidate_labels=["Person"])


def found(entities):
    return [(entity["start"], entity["end"], entity["word"]) for entity in entities]


def scores(entities, shift=0):
    return {(entity["start"] + shift, entity["end"] + shift): entity["score"] for entity in entities}


@pytest.mark.parametrize("blob", [BLOB, "\u00e9" * 700, "x" * 3000], ids=["base64", "accents", "one letter"])
def test_the_text_around_an_overlong_word_is_annotated_as_if_it_stood_alone(pipe, blob):
    text = f"{TEXT} {blob} {TEXT}"
    result = pipe(text, return_report=True, **EVERYTHING)
    after = len(TEXT) + len(blob) + 2
    alone = pipe(TEXT, **EVERYTHING)
    assert scores(result["entities"]) == pytest.approx(scores(alone) | scores(alone, after), abs=1e-5)
    assert all(text[start:end] == word for start, end, word in found(result["entities"]))
    report = result["report"]
    assert report["words_left_out"] == [[len(TEXT) + 1, len(TEXT) + 1 + len(blob)]]
    assert (report["windows"], report["candidates"]) == (2, 2 * len(alone))
    assert report["candidates_left_out"]["not_read"] > 0


@pytest.mark.parametrize("text", [f"{BLOB} {TEXT}", f"{TEXT} {BLOB}", f"{BLOB} {BLOB} {TEXT} {BLOB}"])
def test_overlong_words_may_stand_anywhere(pipe, text):
    entities = pipe(text, **EVERYTHING)
    shift = text.index(TEXT)
    assert scores(entities) == pytest.approx(scores(pipe(TEXT, **EVERYTHING), shift), abs=1e-5)


def test_a_document_of_nothing_else_has_no_entities(pipe, caplog):
    with caplog.at_level(logging.WARNING):
        assert pipe(f" {BLOB} {BLOB}", **EVERYTHING) == []
    assert "overlong words are not read: 2, the first of 1200 characters at character 1." in caplog.text


def test_a_list_goes_on_after_such_a_document(pipe, caplog):
    texts = [TEXT, f"{TEXT} {BLOB}", "Apple."]
    with caplog.at_level(logging.WARNING):
        pipe(texts, **EVERYTHING)
    assert "document 1: overlong words are not read: 1, the first of 1200 characters" in caplog.text
    assert [len(entities) for entities in pipe(texts, **EVERYTHING)] == [
        len(pipe(text, **EVERYTHING)) for text in (TEXT, TEXT, "Apple.")
    ]


def test_long_text_around_an_overlong_word_is_read_in_windows(pipe):
    text = f"{TEXT} " * 20 + BLOB + f" {TEXT}" * 20
    result = pipe(text, return_report=True, **EVERYTHING)
    covered = {entity["start"] for entity in result["entities"]}
    assert {match for match in range(len(text)) if text.startswith("Tim", match)} <= covered
    assert result["report"]["windows"] > 4
    assert len(result["report"]["words_left_out"]) == 1


def test_many_words_of_some_length_are_left_out_from_the_longest_down(pipe):
    hashes = " ".join(random.Random(1).randbytes(30).hex() for _ in range(8))
    result = pipe(f"{TEXT} {hashes} {TEXT}", return_report=True, **EVERYTHING)
    assert {"Tim Cook", "Apple"} <= {word for _, _, word in found(result["entities"])}
    assert result["report"]["words_left_out"]


def test_truncation_keeps_what_stands_before_an_overlong_word(pipe):
    text = f"{BLOB} {TEXT} {BLOB} {TEXT}"
    result = pipe(text, return_report=True, long_documents="truncate", **EVERYTHING)
    end = len(BLOB) + 1 + len(TEXT)
    assert result["report"]["truncated_at"] == end
    assert result["report"]["words_left_out"] == [[0, len(BLOB)]]
    assert {entity["truncated_at"] for entity in result["entities"]} == {end}
    assert scores(result["entities"]) == pytest.approx(scores(pipe(TEXT, **EVERYTHING), len(BLOB) + 1), abs=1e-5)


def test_spans_that_were_asked_for_are_never_left_out(pipe):
    with pytest.raises(ValueError, match="break up overlong words"):
        pipe({"text": f"{TEXT} {BLOB}", "spans": [(0, 8)]})
    with pytest.raises(ValueError, match="Use long_documents"):
        pipe(f"{TEXT} {BLOB}", long_documents="error")


def test_room_for_no_ordinary_word_is_an_error_still():
    text = f"{TEXT} " * 9
    for positions in (54, 58, 62):
        small = tiny_pipeline(model=tiny_native(max_position_embeddings=positions), candidate_labels=["Person"])
        with pytest.raises(ValueError, match="use a model with more positions"):
            small(text)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from(["Tim", "Cook,", "Apple", "(Jobs)", BLOB, BLOB[:300], "a" * 90, "日本", "-"]), max_size=40
    )
)
def test_every_word_is_read_or_reported(pipe, words):
    text = " ".join(words)
    result = pipe(text, return_report=True, **EVERYTHING)
    report, read = result["report"], {(e["start"], e["end"]) for e in result["entities"]}
    left_out = [tuple(bounds) for bounds in report["words_left_out"]]
    document = pipe.preprocess(text).document
    ends = document.word_ends.tolist()
    for start, end in zip(document.word_starts.tolist(), ends, strict=True):
        assert ((start, end) in left_out) != ((start, end) in read)
    assert report["candidates"] == len(result["entities"])
    assert report["candidates"] + report["candidates_left_out"]["not_read"] == document.candidates.num_spans
    count = len(ends)
    assert sum(report["candidates_left_out"].values()) + report["candidates"] == count * (count + 1) // 2


def test_a_report_of_an_ordinary_document_is_short(pipe):
    result = pipe(TEXT, return_report=True)
    assert result["entities"] == pipe(TEXT)
    assert result["report"] == {
        "windows": 1,
        "truncated_at": None,
        "words_left_out": [],
        "candidates": 36,
        "candidates_left_out": {"too_many_words": 0, "no_tokens": 0, "not_read": 0},
    }
    lists = list(pipe((text for text in [TEXT, ""]), return_report=True, max_span_words=2))
    assert lists[0]["report"]["candidates_left_out"]["too_many_words"] == 36 - 15
    assert lists[1] == {
        "entities": [],
        "report": {**result["report"], "candidates": 0},
    }
