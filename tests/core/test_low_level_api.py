import pytest
import torch
from architectures import score_alone, tiny_config, tiny_model
from tokenizers_for_tests import byte_level_single_digits, sentencepiece_legacy

from decodner_hf import DualBufferCache, UniversalDecoder, get_entity_scores, get_label_token_ids, tokenize_spans

PREFIX = torch.tensor([5, 9, 13, 7, 21, 33])
SPANS = torch.tensor([[8, 9, 10], [8, 0, 0], [11, 12, 0]])
LENGTHS = [3, 1, 2]


@pytest.fixture(scope="module")
def native():
    return tiny_model(tiny_config("llama"))


@pytest.fixture
def model(native):
    return UniversalDecoder.from_backbone(native)


def cache_for(model, **options):
    sizes = {"max_prefix_len": 32, "max_suffix_len": 4, "batch_size": 4}
    config = model.config
    return DualBufferCache(
        config.num_layers, config.num_kv_heads, config.head_dim, **(sizes | options), dtype=model.dtype, device="cpu"
    )


def expected_rows(native):
    """Per span, the native logits behind each of its tokens."""
    prefix = PREFIX.tolist()
    return [
        [score_alone(native, [prefix + span[: n + 1]])[0] for n in range(length)]
        for span, length in zip(SPANS.tolist(), LENGTHS, strict=True)
    ]


@pytest.mark.parametrize("how", ["one call", "mini-batches", "given positions"])
def test_every_real_token_has_its_native_logits(native, model, how):
    positions = (len(PREFIX) + torch.arange(3)).expand(3, 3)
    if how == "one call":
        logits = model.score_spans(PREFIX[None], SPANS)
    else:
        cache = cache_for(model)
        model.prefill_prefix(PREFIX, cache)
        given = positions if how == "given positions" else None
        parts = [(SPANS[rows], given if given is None else given[rows]) for rows in (slice(2), slice(2, 3))]
        logits = torch.cat([model.forward_spans(ids, part, cache) for ids, part in parts])
    assert logits.shape == (3, 3, 64)
    for row, expected in zip(logits, expected_rows(native), strict=True):
        torch.testing.assert_close(row[: len(expected)], torch.stack(expected), rtol=0, atol=5e-5)


def test_a_prefilled_cache_is_filled_anew(native, model):
    cache = cache_for(model)
    model.prefill_prefix(torch.tensor([40, 41, 42]), cache)
    assert cache.get_seq_length() == 3
    model.prefill_prefix(PREFIX, cache)
    assert cache.get_seq_length() == len(PREFIX)
    own = model.forward_spans(SPANS[1:2, :1], None, cache)[0, 0]
    torch.testing.assert_close(own, score_alone(native, [[*PREFIX.tolist(), 8]])[0], rtol=0, atol=5e-5)


def test_the_readme_example_end_to_end(tmp_path):
    tokenizer = byte_level_single_digits()
    native = tiny_model(tiny_config("llama", vocab_size=len(tokenizer)))
    native.save_pretrained(tmp_path)
    model = UniversalDecoder.from_hub(str(tmp_path), dtype=torch.float32)
    assert (model.config.num_layers, model.config.num_kv_heads, model.config.head_dim) == (3, 2, 8)
    prompt = "Classify the named entity span. Entity types: 1. Person 2. Company 0. None\n\nText: the text\nSpan:"
    prefix_ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    spans = ["Steve Jobs", "Apple Inc.", "Cupertino"]
    span_ids, position_ids, attention_mask = tokenize_spans(spans, tokenizer, prefix_ids.shape[1])
    assert int(position_ids[0, 0]) == prefix_ids.shape[1]
    cache = cache_for(model, max_prefix_len=256, max_suffix_len=span_ids.shape[1])
    model.prefill_prefix(prefix_ids, cache)
    labels = get_label_token_ids(["0", "1", "2"], tokenizer)
    scores = get_entity_scores(model.forward_spans(span_ids, position_ids, cache), labels, attention_mask)
    prompts = [
        prefix_ids[0].tolist() + row[mask.bool()].tolist() for row, mask in zip(span_ids, attention_mask, strict=True)
    ]
    torch.testing.assert_close(scores, score_alone(native, prompts)[:, list(labels)], rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [byte_level_single_digits, sentencepiece_legacy])
def test_a_span_brings_its_space_or_follows_the_prompts(make):
    tokenizer = make()
    spans = ["Steve Jobs", "Apple"]
    ids = {space: tokenize_spans(spans, tokenizer, 3, leading_space=space)[0] for space in (True, False)}
    assert torch.equal(ids[True], tokenize_spans(spans, tokenizer, 3)[0])

    def read(prompt, row):
        whole = [*tokenizer(prompt, add_special_tokens=False)["input_ids"], *row.tolist()]
        return tokenizer.decode(whole, skip_special_tokens=True)

    assert read("Span:", ids[True][0]) == read("Span: ", ids[False][0]) == "Span: Steve Jobs"
    assert read("Span: ", ids[True][0]) == "Span:  Steve Jobs"


BAD_CALLS = {
    "no spans": (lambda m, c: m.forward_spans(SPANS[:0], None, c), r"at least one span, not \[0, 3\]"),
    "empty spans": (lambda m, c: m.forward_spans(SPANS[:, :0], None, c), r"at least one span, not \[3, 0\]"),
    "one dimension": (lambda m, c: m.forward_spans(SPANS[0], None, c), r"\[batch, span_len\] .* not \[3\]"),
    "span too long": (lambda m, c: m.forward_spans(torch.ones(1, 5).long(), None, c), "5 tokens, .*max_suffix_len=4"),
    "too many spans": (lambda m, c: m.forward_spans(torch.ones(5, 1).long(), None, c), "5 spans .*batch_size=4"),
    "positions off": (
        lambda m, c: m.forward_spans(SPANS, torch.arange(3).expand(3, 3), c),
        "prefix length plus 0 .. span_len - 1 in each row, here 6 .. 8",
    ),
    "token outside": (lambda m, c: m.forward_spans(torch.tensor([[64]]), None, c), "token ids run from 64 to 64"),
    "negative token": (lambda m, c: m.forward_spans(torch.tensor([[-1]]), None, c), "token ids run from -1 to -1"),
    "prefix too long": (lambda m, c: m.prefill_prefix(torch.ones(33).long(), c), "33 tokens .*max_prefix_len=32"),
    "two prefixes": (lambda m, _c: m.score_spans(torch.ones(2, 3).long(), SPANS), "2 prefixes were given"),
    "beyond the model": (lambda m, _c: m.score_spans(torch.ones(254).long(), SPANS), "only positions below 256"),
    "cache of other heads": (
        lambda m, _c: m.prefill_prefix(PREFIX, DualBufferCache(num_kv_heads=4)),
        "num_kv_heads=4, but layer 0 of the model gives num_kv_heads=2",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_refused_with_its_sizes(model, call, message):
    cache = cache_for(model)
    model.prefill_prefix(PREFIX, cache)
    with pytest.raises(ValueError, match=message):
        call(model, cache)
