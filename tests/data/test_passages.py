from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decodner_hf.core.words import split_words
from decodner_hf.data.document_context import CONTEXTS, Context, passages_of
from decodner_hf.data.examples import Example


def joined(examples, max_words):
    return passages_of(examples, Context("document", max_words))


WORD = st.text("abAB.", min_size=1, max_size=4)
DOCUMENT = st.sampled_from([None, "a", "b"])


@st.composite
def sentences(draw, in_words):
    words = draw(st.lists(WORD, min_size=1, max_size=6))
    content = words if in_words else " ".join(words)
    start = draw(st.integers(0, len(content) - 1))
    end = draw(st.integers(start + 1, len(content)))
    return Example(content, ((start, end, "X"),), draw(DOCUMENT))


@given(st.booleans().flatmap(lambda kind: st.lists(sentences(kind), max_size=12)), st.integers(1, 20))
def test_passages_hold_every_sentence_once_and_in_its_place(examples, max_words):
    passages = passages_of(examples, Context("document", max_words))
    assert [member for passage in passages for member in passage.members] == list(range(len(examples)))
    for passage in passages:
        parts = [examples[member] for member in passage.members]
        joined = passage.example
        assert len({part.document for part in parts}) == 1
        sizes = [len(c) if isinstance(c, list) else len(split_words(c)[0]) for c in (p.content for p in parts)]
        assert len(parts) == 1 or (joined.document is not None and sum(sizes) <= max_words)
        assert joined.text == " ".join(part.text for part in parts)
        entities = iter(joined.entities)
        for part, shift, (first, last) in zip(parts, passage.starts, passage.character_bounds, strict=True):
            assert joined.text[first:last] == part.text
            assert joined.content[shift : shift + len(part.content)] == part.content
            assert next(entities) == tuple(
                value + shift if isinstance(value, int) else value for value in part.entities[0]
            )


def test_documents_are_cut_between_sentences_into_even_passages():
    examples = [Example(["w"] * 10, (), "a") for _ in range(11)]
    assert [len(passage.members) for passage in joined(examples, 40)] == [4, 4, 3]
    assert [len(passage.members) for passage in joined(examples, 1000)] == [11]
    assert [len(passage.members) for passage in joined(examples, 5)] == [1] * 11
    assert [len(passage.members) for passage in joined(examples[:5], 40)] == [3, 2]
    uneven = [Example(["w"] * size, (), "a") for size in (4, 8, 8)]
    assert [len(passage.example.content) for passage in joined(uneven, 10)] == [4, 8, 8]
    for passage in joined(examples, 25):
        assert len(passage.example.content) <= 25
    assert len(joined([Example("a b", ()), Example("a b", ())], 10)) == 2


def test_joins_that_make_no_sense_are_refused():
    for kind in CONTEXTS:
        with pytest.raises(ValueError, match="mixes"):
            passages_of([Example("a", (), "d"), Example(["a"], (), "d")], Context(kind, 10))
    for words in (0, True, 1.5):
        with pytest.raises(ValueError, match="at least 1"):
            Context("document", words)
    with pytest.raises(ValueError, match="one of document, preceding"):
        Context("following", 3)


@given(st.booleans().flatmap(lambda kind: st.lists(sentences(kind), max_size=12)))
def test_without_context_every_example_is_read_as_it_is(examples):
    passages = passages_of(examples)
    assert [passage.example for passage in passages] == examples
    assert all(passage.is_one for passage in passages)


@given(st.booleans().flatmap(lambda kind: st.lists(sentences(kind), max_size=12)), st.integers(1, 20))
def test_a_sentence_stands_after_the_words_before_it_in_its_document(examples, num_words):
    passages = iter(passages_of(examples, Context("preceding", num_words)))
    for _, members in groupby(enumerate(examples), lambda item: item[1].document or item[0]):
        before = ""
        for index, example in members:
            passage = next(passages)
            read, ((first, last),), (shift,) = passage.example, passage.character_bounds, passage.starts
            assert passage.members == (index,)
            assert read.text[first:last] == example.text
            assert (last, read.document, len(read.entities)) == (len(read.text), example.document, 1)
            assert read.content[shift:] == example.content
            assert read.entities[0][:2] == tuple(place + shift for place in example.entities[0][:2])
            seen = read.text[: max(0, first - 1)]
            assert before.endswith(seen)
            assert passage.is_one == (not before)
            if isinstance(example.content, list):
                assert shift == min(num_words, len(before.split()))
            else:
                assert len(split_words(seen)[0]) == min(num_words, len(split_words(before)[0]))
            before = f"{before} {example.text}".lstrip()
    assert next(passages, None) is None


def test_preceding_context_has_the_words_asked_for():
    examples = [Example("One two, three.", (), "a"), Example("Four five", (), "a"), Example("Six", (), "b")]
    texts = [passage.example.text for passage in passages_of(examples, Context("preceding", 3))]
    assert texts == ["One two, three.", ", three. Four five", "Six"]
    lists = [Example(example.text.split(), (), example.document) for example in examples]
    contents = [passage.example.content for passage in passages_of(lists, Context("preceding", 2))]
    assert contents == [["One", "two,", "three."], ["two,", "three.", "Four", "five"], ["Six"]]
