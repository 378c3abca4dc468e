"""Candidates and gold answers of the continuation question, against their definitions word by word."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import LABELS, fixed_rows, parsed, run_command, tiny_classifier, trainer
from tokenizers_for_tests import byte_level_single_digits
from transformers import pipeline

from decodner_cli import train as train_command
from decodner_hf import DecodNERConfig, DecodNERPipeline, PromptTemplate
from decodner_hf.core.label_head import UNLABELLED, continuation_loss
from decodner_hf.core.spans import encode_documents
from decodner_hf.core.words import split_texts
from decodner_hf.data.document_context import Context, passages_of
from decodner_hf.data.examples import Example
from decodner_hf.training import TrainingSource
from decodner_hf.training.candidates import CandidateEncoder
from decodner_hf.training.documents import encode_sources
from decodner_hf.training.prompts import OpenPrompter, OpenTypes, fixed_prompt
from decodner_hf.training.rows import PackedRows

WORDS = ["Steve", "Jobs", "(Apple)", "in", "of", "York-based", "東京", "U.S."]


@st.composite
def examples(draw):
    """A text or list of words with nested and doubly labelled entities, some of them wide or off the word bounds."""
    words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=14))
    content = words if draw(st.booleans()) else " ".join(words)
    starts, ends, _ = (bounds.tolist() for bounds in split_texts([" ".join(words)]))
    size = len(words) if isinstance(content, list) else len(starts)
    entities = []
    for _ in range(draw(st.integers(0, 5))):
        first = draw(st.integers(0, size - 1))
        last = draw(st.integers(first, size - 1))
        label = draw(st.sampled_from(LABELS))
        if isinstance(content, list):
            entities.append((first, last + 1, label))
        else:
            end = ends[last] - draw(st.booleans())
            entities.append((starts[first], max(end, starts[first] + 1), label))
    return Example(content, tuple(dict.fromkeys(entities)), "d", draw(st.booleans()))


def gold_in_words(example):
    """(start word, end word, label) of the entities that begin and end with a word, and the number of words."""
    if isinstance(example.content, list):
        return list(example.entities), len(example.content)
    starts, ends, _ = (bounds.tolist() for bounds in split_texts([example.content]))
    found = [
        (starts.index(start), ends.index(end) + 1, label)
        for start, end, label in example.entities
        if start in starts and end in ends
    ]
    return found, len(starts)


def encoder(widest, listed):
    return CandidateEncoder(byte_level_single_digits(), PromptTemplate(), widest, listed)


def pairs(document):
    return list(zip(document.candidates.start_word.tolist(), document.candidates.end_word.tolist(), strict=True))


@given(examples(), st.integers(1, 4), st.integers(1, 9))
def test_long_candidates_are_gold_spans_their_prefixes_and_one_word_more(example, listed, widest):
    (document,) = encoder(widest, listed).encode(passages_of([example]))
    gold, size = gold_in_words(example)
    expected = {(s, e) for s in range(size) for e in range(s + 1, size + 1) if e - s <= min(listed, widest)}
    for start, end, _ in gold:
        if end - start <= widest:
            expected |= {(start, e) for e in range(start + 1, end + 2) if e <= size and e - start <= widest}
    assert sorted(pairs(document)) == sorted(expected)
    assert pairs(document) == sorted(pairs(document))


@given(examples(), st.integers(1, 4), st.integers(1, 9))
def test_candidates_have_the_tokens_and_offsets_that_they_have_among_all(example, listed, widest):
    (document,) = encoder(widest, listed).encode(passages_of([example]))
    in_words = isinstance(example.content, list)
    tokenizer, template = byte_level_single_digits(), PromptTemplate()
    (every,) = encode_documents(
        [example.content], tokenizer, template, max_span_words=widest, is_split_into_words=in_words
    )
    wanted = rows_of(every)
    assert {pair: wanted[pair] for pair in pairs(document)} == rows_of(document)


def rows_of(document):
    spans, paths = document.candidates, document.candidates.paths
    starts = paths.cu_seqlens[paths.span_path]
    tokens = [
        paths.token_ids[start : start + length].tolist()
        for start, length in zip(starts, paths.span_length, strict=True)
    ]
    values = zip(spans.start.tolist(), spans.end.tolist(), tokens, strict=True)
    return dict(zip(pairs(document), values, strict=True))


def test_long_candidates_stay_inside_their_sentence():
    first = Example(list("abcd"), ((0, 4, "PER"),), "d")
    passages = passages_of([first, first], Context("document", 20))
    (document,) = encoder(6, 2).encode(passages)
    assert (0, 4) in pairs(document)
    assert (4, 8) in pairs(document)
    assert (0, 5) not in pairs(document)
    assert all(start // 4 == (end - 1) // 4 for start, end in pairs(document))


def rows_of_sources(chosen, prompt_of, labels=LABELS):
    tokenizer, template = byte_level_single_digits(), PromptTemplate()
    source = TrainingSource("tiny", chosen, labels)
    settings = {"max_span_words": 4, "listed_span_words": 2, "continuation": True}
    sources = encode_sources([source], tokenizer, template, **settings)
    return PackedRows(sources, prompt_of(sources, tokenizer, template), row_tokens=4096, epochs=1, seed=5)


def answers_of(rows, index):
    """The answers of each document of a row, and what follows them."""
    row, (first, last) = rows[index], rows.layout.cu_rows[index : index + 2]
    sizes = [len(rows.encoded.documents[number].gold) for number in rows.layout.order[first:last]]
    assert row["span_continues"].shape == row["labels"].shape
    *found, rest = np.split(row["span_continues"][0].numpy(), np.cumsum(sizes))
    assert rest.dtype == np.int8
    assert (rest == UNLABELLED).all()
    return [answers.tolist() for answers in found]


def expected_answers(example, asked):
    """The definition: for each span, whether some gold span of an asked label is longer and has its first word.

    Where the example is labelled in part, the answer "no" is known of spans that begin inside a gold span alone.
    """
    (document,) = encoder(4, 2).encode(passages_of([example]))
    gold, _ = gold_in_words(example)

    def answer(s, e):
        if any(start == s and end > e and label in asked for start, end, label in gold):
            return 1
        known = not example.partial or any(start <= s < end for start, end, _ in gold)
        return 0 if known else UNLABELLED

    return [answer(*pair) for pair in pairs(document)]


@given(examples())
def test_a_fixed_row_says_which_spans_go_on(example):
    def all_labels(_, tokenizer, template):
        return fixed_prompt(dict.fromkeys(LABELS), tokenizer, template)

    rows = rows_of_sources([example, Example(["Ana"], ((0, 1, "PER"),))], all_labels)
    found = answers_of(rows, 0)
    assert len(rows) == 1
    assert [0] in found  # the other example, so that there is always something to train on
    if len(found) == 2:
        assert sorted(found) == sorted([expected_answers(example, LABELS), [0]])
    else:
        assert example.partial  # and none of its candidates is gold


@pytest.mark.parametrize("partial", [False, True], ids=["whole", "partial"])
def test_open_rows_answer_for_the_types_that_their_prompts_ask_for(partial):
    example = Example(list("abcdefg"), ((0, 6, "LOC"), (0, 2, "PER"), (3, 6, "ORG")), partial=partial)
    parents = {"ORG": ["group"]}

    def open_prompts(sources, tokenizer, template):
        return OpenPrompter(OpenTypes(keep=0.5, max_types=2, parents=parents), sources, tokenizer, template)

    rows = rows_of_sources([example] * 40, open_prompts, (*LABELS, "group"))
    seen = set()
    for index in range(len(rows)):
        slots = range(*rows.layout.cu_rows[index : index + 2])
        for slot, answers in zip(slots, answers_of(rows, index), strict=True):
            numbers = rows.asked.types[rows.asked.cu_types[slot] : rows.asked.cu_types[slot + 1]]
            asked = {rows.encoded.types[number] for number in numbers}
            asked |= {label for label, above in parents.items() if asked & set(above)}
            assert answers == expected_answers(example, asked)
            seen.add(tuple(answers))
    assert len(seen) > 2  # LOC is too wide to be a candidate itself, and is asked for all the same


def test_a_partly_labelled_document_knows_what_stops_inside_its_names_alone():
    example = Example(["Ana", "Bo", "met", "Cy", "of", "York"], ((0, 2, "PER"),), partial=True)

    def all_labels(_, tokenizer, template):
        return fixed_prompt(dict.fromkeys(LABELS), tokenizer, template)

    (found,) = answers_of(rows_of_sources([example], all_labels), 0)
    (document,) = encoder(4, 2).encode(passages_of([example]))
    known = {pair: answer for pair, answer in zip(pairs(document), found, strict=True) if answer != UNLABELLED}
    assert known == {(0, 1): 1, (0, 2): 0, (0, 3): 0, (1, 2): 0, (1, 3): 0}


def test_long_names_are_trained_to_their_end_without_all_spans_of_their_length():
    words = [f"w{number}" for number in range(60)]
    example = Example(words, ((10, 42, "ORG"),))
    tokenizer, template = byte_level_single_digits(), PromptTemplate()
    source = TrainingSource("tiny", [example], LABELS)
    settings = {"max_span_words": 32, "listed_span_words": 8, "continuation": True}
    (document,) = encode_sources([source], tokenizer, template, **settings).documents
    answers = document.continues(np.ones(len(LABELS), bool))
    (encoded,) = encoder(32, 8).encode(passages_of([example]))
    goes_on = {pair for pair, answer in zip(pairs(encoded), answers.tolist(), strict=True) if answer == 1}
    assert goes_on == {(10, end) for end in range(11, 42)}
    assert (10, 42) in pairs(encoded)  # which stops
    assert len(answers) == 8 * 60 - 28 + 24  # up to eight words from everywhere, and up to 32 from the name's start


def test_windows_of_a_long_document_know_the_gold_of_the_whole():
    example = Example(["Ana", "Bo"] * 60, ((0, 9, "PER"), (100, 104, "ORG")))
    source = TrainingSource("tiny", [example], LABELS)
    tokenizer, template = byte_level_single_digits(), PromptTemplate()
    settings = {"max_span_words": 4, "continuation": True}
    whole = encode_sources([source], tokenizer, template, **settings).documents
    parts = encode_sources([source], tokenizer, template, max_tokens=100, **settings).documents
    assert len(whole) == 1 < len(parts)
    counts = [sum(len(document.continued.span) for document in documents) for documents in (whole, parts)]
    assert counts == [4 + 3, 4 + 3]  # prefixes of up to four words of the wide span, and those of the other


def test_rows_without_the_question_have_no_answers():
    assert "span_continues" not in fixed_rows()[0]


def test_the_loss_of_the_question_is_its_cross_entropy_per_gold_span():
    logits = torch.tensor([[2.0, 1.0], [0.5, 3.0], [9.0, 9.0]], dtype=torch.float64)
    answers = torch.tensor([1, 0, UNLABELLED], dtype=torch.int8)
    expected = -(np.log(1 / (1 + np.exp(-1.0))) + np.log(1 - 1 / (1 + np.exp(2.5)))) / 4
    assert float(continuation_loss(logits, answers, 4)) == pytest.approx(expected, abs=1e-6)


def test_a_trained_model_answers_the_question_and_grows_spans(tmp_path):
    examples = [
        Example(["Ana", "Bo", "Cy", "met", "Dan"], ((0, 3, "PER"), (4, 5, "PER"))),
        Example(["Dan", "met", "Ana", "Bo", "Cy"], ((0, 1, "PER"), (2, 5, "PER"))),
    ]
    tokenizer, template = byte_level_single_digits(), PromptTemplate()
    source = TrainingSource("tiny", examples * 4, LABELS)
    sources = encode_sources([source], tokenizer, template, max_span_words=4, continuation=True)
    prompt = fixed_prompt(dict.fromkeys(LABELS), tokenizer, template, continuation=True)
    rows = PackedRows(sources, prompt, row_tokens=256, epochs=40, seed=0)
    model = tiny_classifier()
    model.config.continuation = True
    trainer(model, rows, tmp_path, continuation_weight=1.0).train()
    pipe = DecodNERPipeline(model=model, tokenizer=tokenizer, device="cpu", task="decodner-ner")
    text = " ".join(examples[0].content)
    asked = {"overlap": "all", "threshold": 0.0, "max_span_words": 4}
    grown = [
        {entity["word"] for entity in pipe(text, growth_threshold=threshold, **asked)}
        for threshold in np.linspace(0.05, 0.95, 19).tolist()
    ]
    assert {"Ana", "Ana Bo", "Ana Bo Cy", "Bo", "Cy", "met", "Dan"} in grown  # prefixes of the name alone go on
    assert len(pipe(text, growth=False, **asked)) == 14


@pytest.mark.parametrize("continuation", [[], ["--continuation"]], ids=["without", "with"])
def test_the_width_follows_the_question(files, continuation):
    assert run_command(files, "--continuation", "--max-steps", "1", "--max-span-words", "32") == 0
    (files / "base").rename(files / "first")
    (files / "out").rename(files / "base")
    command = ["--model", files / "base", "--output", files / "out", "--train", files / "data.jsonl", "--cpu"]
    command += ["--workers", "0", "--row-tokens", "512", "--max-steps", "1", *continuation]
    assert train_command.run(parsed(command)) == 0
    assert DecodNERConfig.from_pretrained(files / "out").max_span_words == (32 if continuation else 8)


def test_adapters_answer_the_question_too(files, peft):  # noqa: ARG001
    assert run_command(files, "--continuation", "--lora-rank", "2", "--labels", *LABELS) == 0
    pipe = pipeline("decodner-ner", model=str(files / "out"))
    assert pipe.model.config.continuation
    assert pipe.settings_for({}).growth
    asked = {"overlap": "all", "threshold": 0.0, "return_report": True}
    every, none = (pipe("Apple in Cupertino", growth_threshold=value, **asked) for value in (0.0, 1.0))
    assert len(every["entities"]) == 6
    assert none["report"]["candidates_left_out"]["not_grown"] == 3


def test_the_command_trains_the_question(files):
    assert run_command(files, "--continuation", "--continuation-weight", "0.5") == 0
    config = DecodNERConfig.from_pretrained(files / "out")
    assert config.continuation is True
