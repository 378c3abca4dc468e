"""Spans of up to 32 words: they leave a window's room to the document, and nothing narrower is lost for them."""

import pytest
import tokenizers_for_tests as toys
from tiny_pipelines import tiny_native, tiny_pipeline

from decodner_hf import PromptTemplate
from decodner_hf.core.document_windows import NoWindowError, split_into_windows, truncate_document, without_widest
from decodner_hf.core.spans import encode_documents

TEMPLATE = PromptTemplate()
EVERYTHING = {"threshold": 0.0, "overlap": "all", "return_report": True}
DENSE = " ".join(f"q{number:07d}z" for number in range(120))  # words of about ten tokens
TEXTS = {
    "words": "Ana Bo met Cy in New York and left again for home at once. " * 12,
    "no spaces": "東京都に本社を置くトヨタ自動車は北京大学と協力する" * 8,
    "dense": DENSE,
}


def encoded(text, width):
    (document,) = encode_documents([text], toys.byte_level_single_digits(), TEMPLATE, max_span_words=width)
    return document


def bounds(documents):
    return {
        pair
        for document in documents
        for pair in zip(document.candidates.start.tolist(), document.candidates.end.tolist(), strict=True)
    }


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("limit", [200, 300, 700])
def test_windows_serve_at_width_32_what_they_serve_at_width_8(text, limit):
    tokenizer = toys.byte_level_single_digits()
    narrow, wide = encoded(text, 8), encoded(text, 32)
    windows = split_into_windows(wide, limit, tokenizer, TEMPLATE)
    assert bounds([narrow]) <= bounds(windows)
    most = max(limit // 4, narrow.candidates.longest)
    lengths = wide.candidates.paths.span_length
    size = wide.candidates.end_word - wide.candidates.start_word
    kept = wide.candidates.select((size <= 8) | (lengths <= most))
    assert bounds(windows) == set(zip(kept.start.tolist(), kept.end.tolist(), strict=True))
    for window in windows:
        assert len(window.chain_token_ids) + window.candidates.longest <= limit
        assert window.candidates.longest <= most
    at_width_8 = split_into_windows(narrow, limit, tokenizer, TEMPLATE)
    if narrow.candidates.longest <= limit // 4:  # else the room of width 8 is the larger one
        assert len(windows) <= 2 * len(at_width_8)


def test_all_candidates_are_kept_where_each_was_asked_for():
    tokenizer, document = toys.byte_level_single_digits(), encoded(DENSE, 32)
    longest = document.candidates.longest
    assert without_widest(document, 200).candidates.longest < longest
    for cut in (split_into_windows, truncate_document):
        with pytest.raises(NoWindowError):
            cut(document, longest + 20, tokenizer, TEMPLATE, keep_all=True)
    windows = split_into_windows(document, 3 * longest, tokenizer, TEMPLATE, keep_all=True)
    assert bounds(windows) == bounds([document])


def test_a_document_keeps_its_candidates_where_none_is_wide():
    document = encoded(DENSE, 8)
    assert without_widest(document, 10) is document


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(model=tiny_native(max_position_embeddings=300), candidate_labels=["Person"])


@pytest.mark.parametrize("long_documents", ["window", "truncate"])
def test_no_word_is_left_out_for_the_sake_of_wide_spans(pipe, long_documents):
    asked = EVERYTHING | {"long_documents": long_documents}
    narrow, wide = pipe(DENSE, max_span_words=8, **asked), pipe(DENSE, max_span_words=32, **asked)
    assert narrow["report"]["words_left_out"] == wide["report"]["words_left_out"] == []

    def found(result):
        return {(entity["start"], entity["end"]) for entity in result["entities"]}

    assert found(narrow) <= found(wide)
    if long_documents == "window":
        report = wide["report"]
        assert report["candidates"] == len(wide["entities"])
        assert report["candidates_left_out"]["no_tokens"] == 0
        assert report["candidates_left_out"]["not_read"] > 0  # those of too many tokens, which are counted


def test_the_callers_own_wide_spans_are_scored(pipe):
    text = DENSE[: 12 * 10 - 1]
    found = pipe({"text": text, "spans": [(0, len(text))]}, candidate_labels=["Person"], threshold=0.0)
    assert [(entity["start"], entity["end"]) for entity in found] == [(0, len(text))]
