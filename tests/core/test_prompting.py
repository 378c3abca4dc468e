import numpy as np
import pytest
import tokenizers_for_tests as toys
import torch
from tokenizers import Tokenizer, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from decodner_hf.core.configuration import PROMPT_DEFAULTS, DecodNERConfig
from decodner_hf.core.low_level import get_label_token_ids, tokenize_spans
from decodner_hf.core.prompting import (
    LabelSymbols,
    PromptTemplate,
    TooManyLabelsError,
    choose_symbols,
    shard_labels,
)
from decodner_hf.core.tokenization import (
    check_tokenizer,
    continuation_ids,
    encode_with_offsets,
    opening_ids,
    private_tokenizer,
)

LABELS = {"Person": None, "Company": "a firm", "Location": None}
PREFIX = "Classify the named entity span.\nEntity types: 1. Person 2. Company (a firm) 3. Location 0. None\n\n"
LOSSLESS = toys.BYTE_LEVEL | toys.SENTENCEPIECE


@pytest.fixture(params=toys.ALL.values(), ids=toys.ALL.keys())
def tokenizer(request):
    return request.param()


def decoded(tokenizer, token_ids):
    return tokenizer.backend_tokenizer.decode(np.asarray(token_ids).tolist(), skip_special_tokens=False)


def pieces(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(continuation_ids(tokenizer, [text])[0].tolist())


def vocabulary_of(*tokens):
    """A tokenizer that knows these tokens only, each a character or made of two of them."""
    merges = [(token[:1], token[1:]) for token in tokens if len(token) == 2]
    model = models.BPE(
        vocab={token: index for index, token in enumerate(["?", *tokens])}, merges=merges, unk_token="?"
    )
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="?")


# ------------------------------------------------------------------ tokenization


@pytest.mark.parametrize("make", LOSSLESS.values(), ids=LOSSLESS.keys())
@pytest.mark.parametrize(
    "text", ["1", "Steve", " Steve", "\n\nSteve", "aa", "0 0", ":", "\u0301", "", " ", "\n", "é東😀"]
)
def test_continuations_are_the_text_and_nothing_else(make, text):
    tokenizer = make()
    (ids,) = continuation_ids(tokenizer, [text])
    assert ids.dtype == np.int64
    behind_x = decoded(tokenizer, [*continuation_ids(tokenizer, ["x"])[0], *ids])
    assert behind_x == f"x{text}"


def test_continuations_behind_an_anchor_that_merges_use_another():
    tokenizer = vocabulary_of("\n", "a", "b", "ab", "\nb", ":", "0")
    assert pieces(tokenizer, "b") == ["b"]
    with pytest.raises(ValueError, match=r"merges the text 'b' with each of the anchors \['a', '\\n'\]"):
        continuation_ids(tokenizer, ["b"], anchors=["a", "\n"])


def test_offsets_count_characters_of_the_text_given(tokenizer):
    text = "Steve é 東京 😀😀 \r\nJobs"
    ((ids, starts, ends),) = encode_with_offsets(tokenizer, [text])
    assert len(ids) == len(starts) == len(ends)
    covered = {position for start, end in zip(starts, ends, strict=True) for position in range(start, end)}
    assert covered >= {position for position, character in enumerate(text) if not character.isspace()}
    assert max(covered) == len(text) - 1
    assert text[starts[-1] : ends[-1]] in "Jobs"
    assert (starts[1:] >= starts[:-1]).all()
    assert ids.tolist() == continuation_ids(tokenizer, [text])[0].tolist()


def test_saved_truncation_and_padding_neither_cut_nor_get_lost(tokenizer):
    backend = tokenizer.backend_tokenizer
    text = "Steve Jobs founded Apple Inc. " * 20
    expected = [part.tolist() for part in encode_with_offsets(tokenizer, [text])[0]]
    opening = opening_ids(tokenizer, text).tolist()
    backend.enable_truncation(max_length=4)
    backend.enable_padding(length=7)
    before = (backend.truncation, backend.padding)
    try:
        assert [part.tolist() for part in encode_with_offsets(tokenizer, [text])[0]] == expected
        assert continuation_ids(tokenizer, ["a", text])[1].tolist() == expected[0]
        assert opening_ids(tokenizer, text).tolist() == opening
        assert (backend.truncation, backend.padding) == before
    finally:
        backend.no_truncation()
        backend.no_padding()


def test_the_state_of_a_shared_tokenizer_is_never_switched():
    tokenizer, backend = toys.recording(toys.byte_level_single_digits())
    text = "Steve Jobs founded Apple Inc. " * 20
    expected = continuation_ids(tokenizer, [text])[0].tolist()
    backend.enable_truncation(max_length=4)
    backend.used.clear()
    assert continuation_ids(tokenizer, [text])[0].tolist() == expected
    private = private_tokenizer(tokenizer)
    assert continuation_ids(private, [text])[0].tolist() == expected
    assert private.backend_tokenizer.truncation is None
    assert not {"no_truncation", "no_padding", "enable_truncation", "enable_padding"} & set(backend.used)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "no tokenizer was given"),
        (ByT5Tokenizer(), "ByT5Tokenizer is not a fast"),
        (toys.word_piece().backend_tokenizer, "Tokenizer is not a fast"),
        ("gpt2", "str is not a fast"),
    ],
    ids=["none", "slow", "backend", "name"],
)
def test_tokenizers_without_offsets_are_refused(bad, message):
    for use in (
        lambda: check_tokenizer(bad),
        lambda: continuation_ids(bad, ["a"]),
        lambda: tokenize_spans("a", bad, 0),
        lambda: choose_symbols(bad, 3),
        lambda: get_label_token_ids(["1"], bad),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_spans_are_padded_on_the_right_and_positions_go_on_from_the_prefix():
    tokenizer = toys.byte_level_three_digits()
    assert tokenizer.pad_token_id is None
    spans = ["Steve Jobs", "Apple", "Apple Inc. in Cupertino"]
    span_ids, position_ids, attention_mask = tokenize_spans(spans, tokenizer, 7)
    assert span_ids.dtype == position_ids.dtype == attention_mask.dtype == torch.int64
    assert span_ids.shape == position_ids.shape == attention_mask.shape
    assert (position_ids == torch.arange(7, 7 + span_ids.shape[1])).all()
    for span, ids, mask in zip(spans, span_ids, attention_mask, strict=True):
        length = int(mask.sum())
        assert mask.tolist() == [1] * length + [0] * (span_ids.shape[1] - length)
        assert decoded(tokenizer, ids[:length]) == f" {span}"
        assert (ids[length:] == tokenizer.eos_token_id).all()


def test_one_span_may_be_given_as_a_string(tokenizer):
    for one, listed in zip(
        tokenize_spans("Steve", tokenizer, 3), tokenize_spans(["Steve"], tokenizer, 3), strict=True
    ):
        assert torch.equal(one, listed)
    assert (
        tokenize_spans(["Steve Jobs of Apple", "a"], vocabulary_of(*"abcdefghijklmnopqrstuvwxyzSJA "), 0)[0][1, 2] == 0
    )


@pytest.mark.parametrize(
    ("spans", "prefix_len", "message"),
    [
        ([], 0, "no spans were given"),
        ("", 0, r"span 0 \(''\) is empty"),
        (["a", " "], 0, r"span 1 \(' '\) is empty"),
        (["a", "\ufffd"], 0, "span 1 .* is empty"),
        (["a", 3], 0, "number 1 is int"),
        (None, 0, "must be a list of strings, not NoneType"),
        (b"a", 0, "must be a list of strings, not bytes"),
        (["a"], -1, "0 or more, not -1"),
        (["a"], 1.0, "0 or more, not 1.0"),
        (["\udc80"], 0, "lone surrogate"),
    ],
)
def test_bad_spans_are_refused(spans, prefix_len, message):
    with pytest.raises(ValueError, match=message):
        tokenize_spans(spans, toys.word_piece(), prefix_len)


# ------------------------------------------------------------------ the prompt


def test_the_default_prompt_reads_as_documented():
    tokenizer = toys.byte_level_single_digits()
    template = PromptTemplate()
    symbols = choose_symbols(tokenizer, 3)
    assert template.prefix_text(LABELS, symbols) == PREFIX
    assert decoded(tokenizer, template.encode_prefix(tokenizer, LABELS, symbols)) == PREFIX
    assert (template.document_head, template.document_tail) == ("Text: ", "\nSpan:")
    assert template.encode_cue(tokenizer).tolist() == []


def test_the_prefix_opens_but_does_not_close_with_special_tokens(tokenizer):
    ids = PromptTemplate().encode_prefix(tokenizer, LABELS, choose_symbols(tokenizer, 3)).tolist()
    whole = tokenizer(PREFIX)["input_ids"]
    closing = [tokenizer.sep_token_id] if tokenizer.sep_token_id is not None else []
    assert ids + closing == whole
    assert (ids[0] in tokenizer.all_special_ids) == (tokenizer(["x"])["input_ids"][0][0] in tokenizer.all_special_ids)


def test_every_part_of_the_prompt_may_be_replaced_or_left_out():
    symbols = LabelSymbols(("N", "P"), np.array([1, 2]))
    parts = {"instruction": "Qui ?", "types_header": "Types :", "text_header": "Texte :", "span_header": "Nom :"}
    config = DecodNERConfig(prompt=parts | {"answer_cue": " ->", "none_label": "Rien"})
    template = PromptTemplate.from_config(config)
    assert template.prefix_text({"Personne": None}, symbols) == "Qui ?\nTypes : P. Personne N. Rien\n\n"
    assert (template.document_head, template.document_tail) == ("Texte : ", "\nNom :")
    tokenizer = toys.sentencepiece_legacy()
    assert decoded(tokenizer, [*continuation_ids(tokenizer, ["x"])[0], *template.encode_cue(tokenizer)]) == "x ->"
    bare = PromptTemplate(instruction="", types_header="", text_header="", span_header="")
    assert bare.prefix_text({"Personne": None}, symbols) == "P. Personne N. None\n\n"
    assert (bare.document_head, bare.document_tail) == ("", "\n")
    assert PromptTemplate() == PromptTemplate(**PROMPT_DEFAULTS) == PromptTemplate.from_config(DecodNERConfig())


@pytest.mark.parametrize("cue", ["\nType:", "x", " is a", ": "])
def test_the_cue_is_encoded_as_it_stands_behind_a_span(cue):
    tokenizer = toys.byte_level_three_digits()
    assert decoded(tokenizer, PromptTemplate(answer_cue=cue).encode_cue(tokenizer)) == cue


def test_a_chat_template_holds_the_prompt_and_the_cue():
    tokenizer = toys.byte_level_three_digits()
    tokenizer.chat_template = toys.CHAT_TEMPLATE
    template = PromptTemplate(chat_template=True, answer_cue="Type ")
    try:
        prefix = template.encode_prefix(tokenizer, LABELS, choose_symbols(tokenizer, 3))
        cue = template.encode_cue(tokenizer)
        assert decoded(tokenizer, prefix) == f"<|user|>\n{PREFIX}"
        assert decoded(tokenizer, cue) == "<|end|>\n<|assistant|>\nType "
        assert tokenizer.eos_token_id == cue[0]
        tokenizer.chat_template = "{{ messages[0].content }}{{ messages[0].content }}"
        with pytest.raises(ValueError, match="renders the user's message 2 times"):
            template.encode_cue(tokenizer)
    finally:
        tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has none: set"):
        template.encode_cue(tokenizer)


@pytest.mark.parametrize(
    ("labels", "message"),
    [({"A": None}, "1 labels and the none label need 2 symbols, not 4"), ({"None": None}, "'None' is the none label")],
)
def test_labels_that_do_not_fit_the_prompt_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        PromptTemplate().prefix_text(labels, choose_symbols(toys.byte_level_single_digits(), 3))


# ------------------------------------------------------------------ label symbols


@pytest.mark.parametrize("count", [1, 9, 10, 60, 120])
def test_symbols_are_one_token_each_and_all_different(tokenizer, count):
    symbols = choose_symbols(tokenizer, count)
    assert symbols.token_ids.dtype == np.int64
    assert len(symbols.symbols) == len(set(symbols.symbols)) == len(set(symbols.token_ids.tolist())) == count + 1
    assert [ids.tolist() for ids in continuation_ids(tokenizer, symbols.symbols)] == symbols.token_ids[
        :, None
    ].tolist()
    assert tokenizer.unk_token_id not in symbols.token_ids
    again = choose_symbols(tokenizer, count)
    assert again.symbols == symbols.symbols
    assert again.token_ids.tolist() == symbols.token_ids.tolist()


def test_symbols_are_numbers_where_they_can_be():
    assert choose_symbols(toys.byte_level_three_digits(), 300).symbols == tuple(map(str, range(301)))
    assert choose_symbols(toys.byte_level_single_digits(), 9).symbols == tuple("0123456789")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    symbols = choose_symbols(toys.byte_level_single_digits(), 100).symbols
    assert symbols[:62] == tuple(f"0123456789{letters}")
    assert all(symbol.isalnum() for symbol in symbols)


def test_the_most_labels_are_just_served(tokenizer):
    with pytest.raises(TooManyLabelsError) as refused:
        choose_symbols(tokenizer, 1_000_000)
    most = refused.value.available
    assert most > 100
    choose_symbols(tokenizer, most)
    with pytest.raises(TooManyLabelsError, match=rf"{most + 1} labels .* symbols for {most} only"):
        choose_symbols(tokenizer, most + 1)


@pytest.mark.parametrize("make", [toys.byte_level_single_digits, toys.byte_level_three_digits])
def test_the_search_for_symbols_is_bounded_by_the_vocabulary(make):
    tokenizer, backend = toys.recording(make())
    with pytest.raises(TooManyLabelsError, match="1000000 labels"):
        choose_symbols(tokenizer, 1_000_000)
    assert backend.encoded <= 2 * len(tokenizer) + 1024


def test_unknown_and_shared_tokens_are_no_symbols():
    assert choose_symbols(vocabulary_of("1", "A", "b", "bb", "东", "!"), 4).symbols == ("1", "A", "b", "bb", "东")
    with pytest.raises(TooManyLabelsError, match="symbols for 0 only"):
        choose_symbols(vocabulary_of("!", "?"), 1)
    upper_and_lower = choose_symbols(toys.word_piece(), 40).symbols  # this tokenizer lower-cases
    assert not {"A", "a"} <= set(upper_and_lower)


@pytest.mark.parametrize("count", [0, -1, True, 2.0, None])
def test_symbols_for_no_labels_are_refused(count):
    with pytest.raises(ValueError, match="num_labels must be an integer of at least 1"):
        choose_symbols(toys.byte_level_single_digits(), count)


def test_shards_hold_all_labels_in_order():
    labels = {str(number): f"d{number}" for number in range(10)}
    shards = shard_labels(labels, 4)
    assert [list(shard.values()) for shard in shards] == [
        ["d0", "d1", "d2"],
        ["d3", "d4", "d5"],
        ["d6", "d7", "d8", "d9"],
    ]
    assert shard_labels(labels, 10) == [labels]
    assert [len(shard) for shard in shard_labels(labels, 1)] == [1] * 10
    with pytest.raises(ValueError, match="max_labels must be an integer of at least 1, not 0"):
        shard_labels(labels, 0)


def test_sentencepiece_digits_have_their_own_ids():
    tokenizer = toys.llama2_digits()
    assert tokenizer.tokenize("1") == ["▁", "1"]
    assert get_label_token_ids(["0", "1", "2", "3"], tokenizer) == [29900, 29896, 29906, 29941]
    assert choose_symbols(tokenizer, 3).token_ids.tolist() == [29900, 29896, 29906, 29941]


def test_labels_that_are_not_one_token_of_their_own_are_named():
    tokenizer = toys.sentencepiece_legacy()
    with pytest.raises(ValueError, match=r"'10' is 2 tokens \['1', '0'\]; '' is 0 tokens \[\]; .*'1', '1'\] share"):
        get_label_token_ids(["1", "10", "", "1"], tokenizer)
    with pytest.raises(ValueError, match=r"\['A', 'a'\] share the token"):
        get_label_token_ids(["A", "a", "b"], toys.word_piece())
    with pytest.raises(ValueError, match="no labels were given"):
        get_label_token_ids([], tokenizer)
    with pytest.raises(ValueError, match="labels must be a list of strings, not str"):
        get_label_token_ids("123", tokenizer)
