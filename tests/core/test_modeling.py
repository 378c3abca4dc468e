import copy
import dataclasses
import pickle

import pytest
import torch
from architectures import score_alone, spans_of, tiny_config, tiny_model
from transformers import DynamicCache

from decodner_hf import (
    DecodNERConfig,
    DecodNERForSpanClassification,
    DualBufferCache,
    SpanPaths,
    UniversalDecoder,
    build_forest,
)
from decodner_hf.core.transformers_private import cache_keyword
from decodner_hf.training.model import recompute_layers

PREFIX = [5, 9, 13, 7, 21, 33, 8, 40, 11]
DOCUMENTS = [[14, 15, 16, 14, 15], [17, 14, 16], [15, 15, 18, 19]]
SYMBOLS = torch.tensor([3, 4, 6, 10])
CLOSE = {"rtol": 0, "atol": 5e-5}


def wrapped(model_type="llama", **settings):
    native = tiny_model(tiny_config(model_type, **settings))
    return native, UniversalDecoder.from_backbone(native)


def span_forest(first_position, spans=None):
    return build_forest([[]], [SpanPaths.from_lists(spans or spans_of(DOCUMENTS[0]))], first_position=first_position)


def documents_forest(chain=PREFIX):
    spans = [SpanPaths.from_lists(spans_of(document)) for document in DOCUMENTS]
    return build_forest(DOCUMENTS, spans).below(chain)


def packed(forest, **options):
    rows = {name: getattr(forest, name)[None] for name in ("position_ids", "subtree_end")}
    return {"input_ids": forest.token_ids[None], "span_nodes": forest.span_nodes, **rows, **options}


def test_documents_of_one_pass_equal_each_alone():
    _, model = wrapped()
    cache = model.encode_prefix(PREFIX)
    spans = [SpanPaths.from_lists(spans_of(document)) for document in DOCUMENTS]
    together = model.score_forest(build_forest(DOCUMENTS, spans, first_position=len(PREFIX)), SYMBOLS, cache)
    alone = [
        model.score_forest(build_forest([document], [found], first_position=len(PREFIX)), SYMBOLS, cache)
        for document, found in zip(DOCUMENTS, spans, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)


def test_forward_reads_a_cached_prefix():
    _, model = wrapped()
    cache, forest = model.encode_prefix(PREFIX), span_forest(len(PREFIX))
    scored = model(**packed(forest, symbol_token_ids=SYMBOLS, prefix_cache=cache)).logits
    torch.testing.assert_close(scored, model.score_forest(forest, SYMBOLS, cache))


def test_forward_equals_score_forest_and_picks_each_spans_own_symbols():
    _, model = wrapped()
    forest = documents_forest()
    logits = model.score_forest(forest, SYMBOLS)
    output = model(**packed(forest, symbol_token_ids=SYMBOLS))
    torch.testing.assert_close(output.logits, logits)
    assert output.loss is None
    prompts = torch.arange(forest.num_spans) % 2
    rows = torch.tensor([[3, 4, 6], [10, 3, -1]])
    chosen = model(**packed(forest, symbol_token_ids=rows, span_prompts=prompts)).logits
    torch.testing.assert_close(chosen[0], logits[0, [0, 1, 2]])
    torch.testing.assert_close(chosen[1, :2], logits[1, [3, 0]])
    assert chosen[1, 2] == float("-inf")


@pytest.mark.parametrize("row_head", [True, False], ids=["row head", "native head"])
def test_label_logits_are_the_native_logits_of_a_model_whose_head_has_a_bias(row_head):
    native = tiny_model(tiny_config("phi"))
    assert native.lm_head.bias is not None
    model = DecodNERForSpanClassification.from_backbone(native)
    assert model.row_head
    model.row_head = row_head
    prompts = [PREFIX + doc + span for doc in DOCUMENTS for span in spans_of(doc)]
    expected = score_alone(native, prompts)[:, SYMBOLS]
    torch.testing.assert_close(model.score_forest(documents_forest(), SYMBOLS), expected, **CLOSE)


def test_the_head_is_computed_at_span_ends_only(monkeypatch):
    _, model = wrapped()
    seen = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, w, b=None: seen.append((x.shape, w.shape)) or linear(x, w, b)
    )
    forest = documents_forest()
    model.score_forest(forest, SYMBOLS)
    assert seen[-1] == ((forest.num_spans, 32), (4, 32))
    assert all(weight[0] != 64 for _, weight in seen)


def test_gradients_of_the_packed_loss_are_those_of_spans_one_by_one():
    native, model = wrapped()
    forest = documents_forest()
    gold = torch.arange(forest.num_spans) % 4
    loss = model(**packed(forest, symbol_token_ids=SYMBOLS, labels=gold)).loss
    loss.backward()
    own = {name: parameter.grad.clone() for name, parameter in native.named_parameters()}
    native.zero_grad()
    prompts = [PREFIX + doc + span for doc in DOCUMENTS for span in spans_of(doc)]
    total = torch.zeros(())
    for prompt, column in zip(prompts, gold.tolist(), strict=True):
        row = native(input_ids=torch.tensor([prompt])).logits[0, -1, SYMBOLS]
        total = total - row.log_softmax(0)[column]
    expected = total / int((gold > 0).sum())
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, parameter in native.named_parameters():
        assert float((own[name] - parameter.grad).norm() / parameter.grad.norm()) < 5e-4, name
    assert float(native.model.layers[0].self_attn.q_proj.weight.grad.norm()) > 0


def test_labels_left_out_and_counts_of_others_scale_the_loss():
    _, model = wrapped()
    forest = documents_forest()
    gold = torch.arange(forest.num_spans) % 4
    arguments = packed(forest, symbol_token_ids=SYMBOLS)
    logits = model(**arguments).logits
    kept = gold.masked_fill(torch.arange(len(gold)) % 3 == 0, -100)
    summed = torch.nn.functional.cross_entropy(logits, kept, reduction="sum")
    assert model(**arguments, labels=kept).loss.item() == pytest.approx((summed / (kept > 0).sum()).item())
    assert model(**arguments, labels=kept, num_items_in_batch=7).loss.item() == pytest.approx((summed / 7).item())


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        native, model = wrapped()
        model.train()
        if checkpointing:
            recompute_layers(model)
        forest = documents_forest()
        gold = torch.arange(forest.num_spans) % 4
        model(**packed(forest, symbol_token_ids=SYMBOLS, labels=gold)).loss.backward()
        gradients.append(native.model.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gpt2"])
def test_without_a_forest_it_is_the_decoders_ordinary_forward(model_type):
    native, model = wrapped(model_type)
    input_ids = torch.randint(3, 64, (2, 14), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(input_ids)
    mask[1, 9:] = 0
    own, expected = (m(input_ids=input_ids, attention_mask=mask, labels=input_ids) for m in (model, native))
    torch.testing.assert_close(own.logits[mask.bool()], expected.logits[mask.bool()], **CLOSE)
    assert own.loss.item() == pytest.approx(expected.loss.item(), rel=1e-4)
    rows = torch.tensor([PREFIX])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.backbone.generate(rows, **options), native.generate(rows, **options))


@pytest.mark.parametrize("keyword", ["cache", "past_key_values"])
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_our_cache_in_an_ordinary_forward_is_a_dynamic_cache(model_type, keyword):
    native, model = wrapped(model_type)
    cache = model.encode_prefix(PREFIX)
    theirs = {cache_keyword(native): DynamicCache(config=native.config)}
    native(input_ids=torch.tensor([PREFIX]), **theirs)
    for step in (torch.tensor([[5, 6, 7]]), torch.tensor([[8]])):
        own = model(input_ids=step, use_cache=True, **{keyword: cache}).logits
        torch.testing.assert_close(own, native(input_ids=step, **theirs).logits, **CLOSE)
    assert (cache.get_seq_length(), cache.prefix_length) == (len(PREFIX) + 4, len(PREFIX))


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_generation_continues_a_cached_prefix(model_type):
    native, model = wrapped(model_type)
    prompt = torch.tensor([[*PREFIX, 14, 15]])
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    own = model.backbone.generate(prompt, **{cache_keyword(native): model.encode_prefix(PREFIX)}, **options)
    assert torch.equal(own, native.generate(prompt, **options))


def snapshot(cache):
    return [tuple(part.clone() for part in cache.read_prefix(layer, 0)) for layer in range(3)]


def assert_unchanged(cache, before):
    assert cache.prefix_length == len(PREFIX)
    for layer, parts in enumerate(before):
        for part, held in zip(parts, cache.read_prefix(layer, 0), strict=True):
            assert torch.equal(part, held)


def test_span_passes_leave_the_prefix_as_it_is():
    _, model = wrapped()
    cache = model.encode_prefix(PREFIX)
    before = snapshot(cache)
    first = model.score_forest(span_forest(len(PREFIX)), SYMBOLS, cache)
    model.forward_spans(torch.tensor([[5, 6], [7, 8]]), None, cache)
    assert torch.equal(model.score_forest(span_forest(len(PREFIX)), SYMBOLS, cache), first)
    assert_unchanged(cache, before)


def test_a_pass_that_fails_half_way_leaves_the_prefix_as_it_is():
    _, model = wrapped()
    cache = model.encode_prefix(PREFIX)
    before = snapshot(cache)

    def fail(*_):
        raise RuntimeError("no more memory")

    handle = model.backbone.model.layers[2].register_forward_pre_hook(fail)
    for run in (
        lambda: model.encode_prefix(DOCUMENTS[0], cache),
        lambda: model.score_forest(span_forest(len(PREFIX)), SYMBOLS, cache),
    ):
        with pytest.raises(RuntimeError, match="no more memory"):
            run()
        assert_unchanged(cache, before)
    handle.remove()
    expected = model.encode_prefix(DOCUMENTS[0], model.encode_prefix(PREFIX)).read_prefix(2, 0)
    grown = model.encode_prefix(DOCUMENTS[0], cache).read_prefix(2, 0)
    assert torch.equal(grown[0], expected[0])


def test_a_users_model_is_left_as_it_is_and_shares_its_memory():
    native = tiny_model(tiny_config("llama", tie_word_embeddings=True)).train()
    config, state = copy.deepcopy(native.config.to_dict()), {n: t.clone() for n, t in native.state_dict().items()}
    model = DecodNERForSpanClassification.from_backbone(native, DecodNERConfig(entity_labels=["A"]))
    model.score_forest(documents_forest(), SYMBOLS)
    assert native.config.to_dict() == config
    assert native.config._attn_implementation == "eager"
    assert native.training
    assert model.training
    assert model.config.labels == {"A": None}
    for name, tensor in native.state_dict().items():
        assert torch.equal(tensor, state[name])
        assert tensor.data_ptr() == model.backbone.state_dict()[name].data_ptr()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert set(model.state_dict()) == {f"backbone.{name}" for name in native.state_dict()}


def test_weights_load_under_the_decoders_own_keys_and_ours():
    native, model = wrapped()
    _, other = wrapped("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    for state in (native.state_dict(), model.state_dict()):
        other.load_state_dict(copy.deepcopy(state))
        torch.testing.assert_close(
            other.score_forest(documents_forest(), SYMBOLS), model.score_forest(documents_forest(), SYMBOLS)
        )
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({"lm_head.weight": native.lm_head.weight})


def test_half_precision_scores_follow_float32():
    native, model = wrapped()
    half = DecodNERForSpanClassification.from_backbone(copy.deepcopy(native).to(torch.bfloat16))
    exact, rounded = (m.score_forest(documents_forest(), SYMBOLS) for m in (model, half))
    alone = score_alone(half.backbone, [PREFIX + doc + span for doc in DOCUMENTS for span in spans_of(doc)])
    own_error = float((alone[:, SYMBOLS].float() - exact).norm() / exact.norm())
    assert float((rounded.float() - exact).norm() / exact.norm()) < 2 * own_error + 1e-3


def test_tensors_need_be_neither_contiguous_nor_int64():
    _, model = wrapped()
    plain = torch.tensor([[14, 15], [16, 17]])
    strided = torch.stack([plain, plain], dim=2)[:, :, 0]
    assert not strided.is_contiguous()
    expected = model.score_spans(torch.tensor(PREFIX), plain)
    for prefix, spans in ((torch.tensor(PREFIX), strided), (torch.tensor(PREFIX, dtype=torch.int32), plain.int())):
        torch.testing.assert_close(model.score_spans(prefix, spans), expected)
    wide = torch.tensor([PREFIX, PREFIX]).T[:, 0]
    torch.testing.assert_close(model.score_spans(wide, plain), expected)


BAD_CALLS = {
    "empty span list": (lambda m, _c: m.score_forest(build_forest([[5]]), SYMBOLS, None), "no spans to score"),
    "empty span": (lambda _m, _c: span_forest(9, [[5], []]), "span 1 is empty"),
    "prefix beyond the model": (
        lambda m, _c: m.encode_prefix([5] * 257),
        "reach position 256, but only positions below",
    ),
    "prefix beyond the cache": (
        lambda m, _c: m.encode_prefix([5] * 4, DualBufferCache(max_prefix_len=3)),
        "4 tokens .0 cached, 4 new.*max_prefix_len=3",
    ),
    "empty prefix": (lambda m, _c: m.encode_prefix([]), "the prefix is empty"),
    "two prefixes": (lambda m, _c: m.encode_prefix(torch.ones(2, 3, dtype=torch.int64)), "2 prefixes were given"),
    "fractional prefix": (lambda m, _c: m.encode_prefix(torch.tensor([1.5])), "token ids must be integers, .*float32"),
    "fractional spans": (
        lambda m, c: m.forward_spans(torch.tensor([[1.5]]), None, c),
        "token ids must be integers, .*float32",
    ),
    "token outside": (lambda m, _c: m.encode_prefix([64]), "token ids run from 64 to 64, .* 0 .. 63"),
    "positions of another prefix": (
        lambda m, c: m.score_forest(span_forest(5), SYMBOLS, c),
        "run from 5 to 7, but the prefix has 9 tokens",
    ),
    "shared symbol": (lambda m, c: m.score_forest(span_forest(9), [3, 3], c), r"\[3, 3\] are not distinct"),
    "symbol outside": (
        lambda m, c: m.score_forest(span_forest(9), [3, 64], c),
        "label token ids run from 3 to 64, but the vocabulary is 0 .. 63",
    ),
    "negative symbol": (lambda m, c: m.score_forest(span_forest(9), [-1, 3], c), "run from -1 to 3"),
    "no symbols": (lambda m, c: m.score_forest(span_forest(9), [], c), "label token ids must be integers"),
    "cache of another model": (
        lambda _m, c: wrapped()[1].score_forest(span_forest(9), SYMBOLS, c),
        "a prefix of another model",
    ),
    "growing another model's cache": (lambda _m, c: wrapped()[1].encode_prefix([5], c), "a prefix of another model"),
    "cache of another dtype": (
        lambda m, _c: m.encode_prefix([5], DualBufferCache(dtype=torch.bfloat16)),
        "made with dtype=torch.bfloat16",
    ),
    "cache of another size": (lambda m, _c: m.encode_prefix([5], DualBufferCache(num_layers=2)), "made for 2 layers"),
    "ends before their node": (
        lambda m, _c: m(
            **packed(span_forest(0, [[5, 6]]), symbol_token_ids=SYMBOLS) | {"subtree_end": torch.tensor([0, 0])}
        ),
        "between the node itself and the last node",
    ),
    "ends beyond the last node": (
        lambda m, _c: m(
            **packed(span_forest(0, [[5, 6]]), symbol_token_ids=SYMBOLS) | {"subtree_end": torch.tensor([2, 1])}
        ),
        "between the node itself and the last node",
    ),
    "positions that jump": (
        lambda m, _c: m(
            **packed(span_forest(0, [[5, 6]]), symbol_token_ids=SYMBOLS) | {"position_ids": torch.tensor([0, 2])}
        ),
        "a node's position is the prefix length plus its depth",
    ),
    "positions missing": (
        lambda m, _c: m(input_ids=torch.tensor([[5]]), subtree_end=torch.tensor([0])),
        "a packed pass needs input_ids, position_ids",
    ),
    "a prefix without a forest": (
        lambda m, c: m(input_ids=torch.tensor([[5]]), prefix_cache=c),
        "prefix_cache belong to a packed pass: give subtree_end too",
    ),
    "whose symbols": (
        lambda m, _c: m(**packed(span_forest(0), symbol_token_ids=torch.tensor([[3, 4], [5, 6]]))),
        "span_prompts must say whose is whose",
    ),
    "no decoder": (lambda _m, _c: DecodNERForSpanClassification(DecodNERConfig()), "no text_config"),
    "another attention": (
        lambda _m, _c: DecodNERForSpanClassification.from_pretrained("anywhere", attn_implementation="sdpa"),
        "leave attn_implementation out",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_refused_and_says_why(call, message):
    _, model = wrapped()
    cache = model.encode_prefix(PREFIX)
    with pytest.raises(ValueError, match=message):
        call(model, cache)
    assert cache.prefix_length == len(PREFIX)


def test_packs_made_side_by_side_score_as_one():
    _, model = wrapped()
    spans = [SpanPaths.from_lists(spans_of(document)) for document in DOCUMENTS]
    chains = [[*prefix, *document] for prefix in (PREFIX, [7, 8]) for document in DOCUMENTS]
    together = model(**packed(build_forest(chains, spans * 2), symbol_token_ids=SYMBOLS)).logits
    parts = [model.score_forest(documents_forest(prefix), SYMBOLS) for prefix in (PREFIX, [7, 8])]
    torch.testing.assert_close(together, torch.cat(parts), **CLOSE)


# ---------------------------------------------------------------- what must not pass silently


def test_positions_that_are_not_depths_are_refused():
    _, model = wrapped()
    cache = model.encode_prefix(PREFIX)
    forest = build_forest([[14, 15, 16]], [SpanPaths.from_lists([[3]])], first_position=len(PREFIX))
    flat = dataclasses.replace(forest, position_ids=torch.full_like(forest.position_ids, len(PREFIX)))
    with pytest.raises(ValueError, match="its depth in the forest"):
        model.score_forest(flat, SYMBOLS, cache)


@pytest.mark.parametrize("node", [-1, 4])
def test_span_nodes_outside_the_forest_are_refused(node):
    _, model = wrapped()
    forest = build_forest([[14, 15, 16]], [SpanPaths.from_lists([[3]])])
    with pytest.raises(ValueError, match=r"0 \.\. 3"):
        model.score_forest(dataclasses.replace(forest, span_nodes=torch.tensor([node])), SYMBOLS)


def test_another_attention_implementation_is_refused():
    _, model = wrapped()
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="'sdpa'"):
        model.encode_prefix(PREFIX)


def test_a_padded_symbol_is_minus_infinity_for_a_single_prompt_too():
    _, model = wrapped()
    logits = model(**packed(documents_forest(), symbol_token_ids=torch.tensor([[3, 4, -1]]))).logits
    assert (logits[:, 2] == float("-inf")).all()
    assert logits[:, :2].isfinite().all()


def test_a_prefix_does_not_grow_over_a_suffix():
    _, model = wrapped()
    cache = model.encode_prefix(PREFIX)
    model(input_ids=torch.tensor([[3, 4]]), cache=cache, use_cache=True)
    with pytest.raises(ValueError, match="2 suffix tokens"):
        model.encode_prefix([5, 6], cache)


def test_a_prefix_is_no_past_for_models_that_cache_something_else():
    _, model = wrapped("diffllama")
    cache = model.encode_prefix(PREFIX)
    with pytest.raises(ValueError, match="other keys and values"):
        model(input_ids=torch.tensor([[3, 4]]), cache=cache, use_cache=True)


def test_copies_and_pickles_of_a_cache_score_alike():
    _, model = wrapped()
    cache, forest = model.encode_prefix(PREFIX), span_forest(len(PREFIX))
    expected = model.score_forest(forest, SYMBOLS, cache)
    copied, unpickled = copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))
    cache.reset()
    torch.testing.assert_close(model.score_forest(forest, SYMBOLS, copied), expected)
    torch.testing.assert_close(model.score_forest(forest, SYMBOLS, unpickled), expected)
    with pytest.raises(ValueError, match="another model"):
        wrapped()[1].score_forest(forest, SYMBOLS, copied)


def test_a_training_model_keeps_the_row_head():
    native = tiny_model(tiny_config("gpt2")).train()
    model = DecodNERForSpanClassification.from_backbone(native)
    assert model.row_head
    assert model.training


@pytest.mark.parametrize("what", ["ours", "base", "nothing"])
def test_only_native_models_with_a_head_are_wrapped(what):
    native, model = wrapped()
    with pytest.raises(ValueError, match=r"language head|[Dd]ecod(NER|ner)"):
        DecodNERForSpanClassification.from_backbone({"ours": model, "base": native.model, "nothing": None}[what])


@pytest.mark.parametrize("model_type", ["gpt_bigcode", "deepseek_v3", "llama", "gpt2"])
def test_the_configuration_gives_a_caches_sizes(model_type):
    _, model = wrapped(model_type)
    config = model.config
    cache = DualBufferCache(config.num_layers, config.num_kv_heads, config.head_dim)
    assert model.encode_prefix(PREFIX, cache).prefix_length == len(PREFIX)
