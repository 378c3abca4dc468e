import numpy as np
import pytest
from tiny_training import LABELS, SENTENCES, encoded, fixed_rows, open_rows
from tokenizers_for_tests import byte_level_single_digits

from decodner_hf import PromptTemplate
from decodner_hf.core.label_head import UNLABELLED
from decodner_hf.data.examples import Example
from decodner_hf.training.prompts import OpenPrompter, OpenTypes, fixed_prompt
from decodner_hf.training.rows import PackedRows


def test_every_gold_span_is_labelled_once_and_the_rest_is_none():
    rows = fixed_rows(epochs=2)
    labels = np.concatenate([row["labels"][0].numpy() for row in rows])
    assert [(labels == column).sum() for column in (1, 2, 3)] == [2 * 4, 2 * 6, 2 * 4]
    candidates = sum(len(document.gold) for document in rows.encoded.documents)
    assert (labels != UNLABELLED).sum() == 2 * candidates


def test_rows_have_one_length_and_end_in_roots_without_spans():
    rows = fixed_rows()
    assert len(rows) > 1
    for row in rows:
        assert row["input_ids"].shape == row["position_ids"].shape == row["subtree_end"].shape == (1, 256)
        ends, used = row["subtree_end"][0], int(row["subtree_end"][0, 0]) + 1
        assert (ends[used:] == np.arange(used, 256)).all()
        assert int(row["span_nodes"][0][row["labels"][0] != UNLABELLED].max()) < used


def test_rows_too_short_for_any_document_are_an_error_and_long_documents_are_counted():
    with pytest.raises(ValueError, match="use longer rows"):
        fixed_rows(row_tokens=40)
    long = Example(["word"] * 300, ())
    assert fixed_rows(examples=[*SENTENCES, long]).layout.left_out == 1


def test_sources_that_leave_nothing_to_train_on_are_an_error():
    with pytest.raises(ValueError, match=r"no example of the sources \['tiny'\] can be trained on: .* not blank"):
        encoded([Example("  ", ()), Example("a b", (), partial=True)])
    with pytest.raises(ValueError, match=r"repeats of \(0.4,\) show not one document"):
        fixed_rows(examples=SENTENCES[:1], repeat=0.4)


def test_noise_masks_tokens_after_the_prompts_only():
    tokenizer, sources = byte_level_single_digits(), encoded(SENTENCES * 20)
    prompter = OpenPrompter(OpenTypes(), sources, tokenizer, PromptTemplate())
    pad = tokenizer.vocab_size - 1
    for prompt in (fixed_prompt(dict.fromkeys(LABELS), tokenizer, PromptTemplate()), prompter):
        pads = []
        for noise in (0.0, 0.3):
            rows = PackedRows(sources, prompt, row_tokens=512, epochs=1, seed=3, pad_token_id=pad, token_noise=noise)
            pads.append([row["input_ids"][0].numpy() for row in (rows[0], rows[1])])
        changed = [before != after for before, after in zip(*pads, strict=True)]
        share = np.mean([np.mean(part) for part in changed])
        assert 0.05 < share < 0.3
        header = len(prompt.prefix_token_ids) if not isinstance(prompt, OpenPrompter) else 4
        assert not changed[0][:header].any()
        assert all((after[part] == pad).all() for part, after in zip(changed, pads[1], strict=True))


def test_open_rows_depend_on_the_seed_alone():
    first, again, other = open_rows(seed=1), open_rows(seed=1), open_rows(seed=2)
    assert len(first) == len(again)
    for index in reversed(range(len(first))):
        for name, value in first[index].items():
            assert np.array_equal(value, again[index][name]), name
    assert not np.array_equal(first[0]["input_ids"], other[0]["input_ids"])
