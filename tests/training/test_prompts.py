import numpy as np
import pytest
from tiny_training import LABELS, SENTENCES, encoded, open_rows
from tokenizers_for_tests import byte_level_single_digits

from decodner_hf import PromptTemplate
from decodner_hf.core.label_head import UNLABELLED
from decodner_hf.data.examples import Example
from decodner_hf.training import TrainingSource
from decodner_hf.training.documents import encode_sources
from decodner_hf.training.prompts import OpenPrompter, OpenTypes


def prompts_of(rows):
    tokenizer = byte_level_single_digits()
    found = []
    for row in rows:
        ids, ends, start = row["input_ids"][0].numpy(), row["subtree_end"][0], 0
        for symbols in row["symbol_token_ids"]:
            chain = [n for n in range(start, ends[start] + 1) if ends[n] == ends[start]]
            spans = (row["span_nodes"][0] >= start) & (row["span_nodes"][0] <= int(ends[start]))
            spans &= row["labels"][0] != UNLABELLED
            found.append((tokenizer.decode(ids[chain]), symbols, row["labels"][0][spans].tolist()))
            start = int(ends[start]) + 1
    return found


def test_open_prompts_name_each_asked_type_under_a_symbol_of_its_own():
    seen = set()
    for text, symbols, labels in prompts_of(open_rows(epochs=8, recased=0.0, keep=1.0)):
        words = text.split("Entity types: ")[1].split("\n")[0].split()
        items = list(zip([word.removesuffix(".") for word in words[::2]], words[1::2], strict=True))
        assert [name for _, name in items][-1] == "None"
        tokenizer = byte_level_single_digits()
        used = [int(symbol) for symbol in symbols if symbol >= 0]
        assert len(used) == len(set(used)) == len(items)
        assert tokenizer.convert_ids_to_tokens(used) == [items[-1][0], *(symbol for symbol, _ in items[:-1])]
        names = tuple(name for _, name in items[:-1])
        assert set(names) <= set(LABELS)
        assert max(labels, default=0) <= len(names)
        if "Steve Jobs founded" in text:
            assert {"PER", "ORG"} <= set(names)
            assert {names[label - 1] for label in labels if label} == {"PER", "ORG"}
        seen.add(names)
    assert len(seen) > 4


def test_types_that_are_not_asked_for_are_none():
    found = [labels for _, _, labels in prompts_of(open_rows(epochs=4, keep=0.0))]
    assert found
    assert all(max(labels) == 0 for labels in found if labels)


def test_a_span_answers_with_the_nearest_of_its_types_that_is_asked_for():
    parents = {"PER": ["being"], "ORG": ["group", "being"]}
    types = (*LABELS, "being", "group")
    sources, tokenizer = encoded(types=types), byte_level_single_digits()
    prompter = OpenPrompter(OpenTypes(parents=parents), sources, tokenizer, PromptTemplate())
    occurring = np.array([0, 1, 2])
    for asked, answers in (("being", [1, 1, 0]), ("being PER", [2, 1, 0]), ("LOC being group", [2, 3, 1])):
        numbers = np.array([types.index(name) for name in asked.split()])
        assert prompter.columns(numbers, occurring).tolist() == answers
    with pytest.raises(ValueError, match="'being' is a parent of the type 'PER', but no type itself"):
        OpenPrompter(OpenTypes(parents=parents), encoded(), tokenizer, PromptTemplate())


def test_types_are_sometimes_asked_for_by_a_more_general_one():
    parents = {"PER": ["being"], "ORG": ["group", "being"]}
    sources, tokenizer = encoded(types=(*LABELS, "being", "group")), byte_level_single_digits()
    for generalized, top_level, seen in ((0.0, 0.0, {0, 1, 2}), (1.0, 0.0, {2, 3, 4}), (0.0, 1.0, {2, 3})):
        settings = OpenTypes(parents=parents, generalized=generalized, top_level=top_level, keep=1.0, max_types=1)
        drawn = OpenPrompter(settings, sources, tokenizer, PromptTemplate()).draw(
            sources.documents * 20, np.random.default_rng(0)
        )
        examples_with_types = [bool(len(document.types)) for document in sources.documents * 20]
        asked = drawn.types[np.repeat(examples_with_types, np.diff(drawn.cu_types))]
        assert set(asked.tolist()) == seen


def test_prompts_stay_within_their_tokens_and_ask_for_one_type_at_least():
    tokenizer, sources = byte_level_single_digits(), encoded(SENTENCES * 20)
    sizes = {}
    for limit in (1, 45, 512):
        prompter = OpenPrompter(OpenTypes(prompt_tokens=limit), sources, tokenizer, PromptTemplate())
        drawn = prompter.draw(sources.documents, np.random.default_rng(0))
        asked = np.diff(drawn.cu_types)
        assert asked.min() >= 1
        assert (drawn.sizes[asked > 1] <= limit).all()
        sizes[limit] = asked.mean()
    assert sizes[1] == 1
    assert sizes[1] < sizes[512]


def test_every_prompt_asks_for_a_type_even_where_the_source_knows_one_only():
    source = TrainingSource("one", [Example(["Apple", "Inc."], ((0, 2, "ORG"),))] * 50, ("ORG",))
    sources = encode_sources([source], byte_level_single_digits(), PromptTemplate(), max_span_words=3)
    prompter = OpenPrompter(OpenTypes(keep=0.1), sources, byte_level_single_digits(), PromptTemplate())
    drawn = prompter.draw(sources.documents, np.random.default_rng(0))
    assert (np.diff(drawn.cu_types) == 1).all()
