"""Grown spans have the scores of exhaustive scoring, and those exist that the rule says, in any packing."""

import copy
import pickle

import numpy as np
import pytest
import torch
from architectures import tiny_config, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_pipelines import tiny_native
from transformers import AutoTokenizer
from varied_documents import varied_text

from decodner_hf import DecodNERConfig, DecodNERForSpanClassification, DecodNERPipeline, build_forest
from decodner_hf.core.decoding import merge_shards
from decodner_hf.core.growth import existing_spans
from decodner_hf.core.pipeline_io import Document
from decodner_hf.default_model import default_model

TEXTS = st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), max_size=16).map(varied_text)
BUDGETS = st.sampled_from([1, 33, 64, 130, 300, 4096])
REPEATED = "The New York Times met New York in New York City, (New York) and Jean-Luc Jean-Luc. " * 2


def questioned(tokenizer, native, **settings):
    """A pipeline whose model answers the continuation question, at random."""
    config = DecodNERConfig(continuation=True, **settings)
    return pipeline_of(DecodNERForSpanClassification.from_backbone(native, config), tokenizer)


def pipeline_of(model, tokenizer):
    return DecodNERPipeline(model=model, tokenizer=tokenizer, device="cpu", task="decodner-ner")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(default_model())


@pytest.fixture(
    scope="module",
    params=[(4096, ""), (170, ""), (4096, " Type:")],
    ids=["whole", "windows", "cue"],
)
def exact(request, tokenizer):
    positions, cue = request.param
    native = tiny_native(vocab_size=len(tokenizer), max_position_embeddings=positions).double()
    return questioned(tokenizer, native, prompt={"answer_cue": cue})


def encoded(pipe, text, spans=None, listed_words=None, **choices):
    settings = pipe.settings_for({"candidate_labels": ["x"], **choices})
    labels = pipe.labels_for(settings.candidate_labels)
    return pipe.encoder.encode([Document(text, labels, spans)], settings, listed_words)[0]


def every_score(pipe, text, **choices):
    """Per window its candidates, their label logits [S, L + 1], and the probabilities [S] that they go on."""
    prepared = encoded(pipe, text, growth=False, **choices)
    found = []
    for window in prepared.windows:
        logits, odds = [], []
        for prompt in prepared.prompts if window.candidates.num_spans else ():
            cache = pipe.model.encode_prefix(prompt.prefix_token_ids)
            forest = build_forest(
                [window.chain_token_ids],
                [window.candidates.paths],
                first_position=cache.prefix_length,
                cue_token_ids=prompt.cue_token_ids.tolist(),
            )
            tokens = np.append(prompt.symbol_token_ids, prompt.question_token_ids)
            scores = pipe.model.score_forest(forest, tokens, cache).double().numpy()
            logits.append(scores[:, :-2])
            odds.append(scores[:, -2] - scores[:, -1])
        if logits:
            probability = 1 / (1 + np.exp(-np.max(odds, axis=0)))
            found.append((window.candidates, merge_shards(logits) if len(logits) > 1 else logits[0], probability))
    return found


def words_of(document, candidates):
    starts = np.searchsorted(document.word_ends, candidates.start, side="right").tolist()
    return [starts, np.searchsorted(document.word_starts, candidates.end, side="left").tolist()]


def between_two(probabilities, share):
    """A threshold that no probability is near: midway between two of them."""
    ordered = np.unique(np.round(np.concatenate([[0.0, 1.0], *probabilities]), 7))
    place = min(int(share * (len(ordered) - 1)), len(ordered) - 2)
    return float(ordered[place : place + 2].mean())


def assert_grown_as_the_rule_says(pipe, text, share, budget, tolerance, **choices):
    every = every_score(pipe, text, **choices)
    threshold = between_two([probability for _, _, probability in every], share)
    pipe.scorer.token_budget = budget
    expected_spans, expected_logits = [], []
    for candidates, logits, probability in every:
        width = candidates.end_word - candidates.start_word
        exists = existing_spans(candidates.start_word, width, probability >= threshold)
        expected_spans += list(zip(candidates.start[exists].tolist(), candidates.end[exists].tolist(), strict=True))
        expected_logits += logits[exists].tolist()
    for listed_words in (None, 2, 4):
        prepared = encoded(pipe, text, growth_threshold=threshold, listed_words=listed_words, **choices)
        result = pipe.scorer.score([prepared])[0]
        windows = [window.candidates for window in result.prepared.windows]
        found = [pair for w in windows for pair in zip(w.start.tolist(), w.end.tolist(), strict=True)]
        assert found == expected_spans
        for window in windows:
            assert [window.start_word.tolist(), window.end_word.tolist()] == words_of(prepared.document, window)
        if found:
            assert np.abs(result.label_logits - np.array(expected_logits)).max() <= tolerance
    return len(found), sum(len(probability) for *_, probability in every)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=TEXTS | st.just(REPEATED), share=st.floats(0, 1), width=st.integers(1, 12), count=st.sampled_from([1, 3, 40]),
    budget=BUDGETS,
)  # fmt: skip
def test_grown_scores_equal_exhaustive_ones(exact, text, share, width, count, budget):
    labels = [f"type{number}" for number in range(count)]
    assert_grown_as_the_rule_says(exact, text, share, budget, 1e-9, candidate_labels=labels, max_span_words=width)


ARCHITECTURES = {
    "llama": {},
    "mistral": {},
    "qwen2_moe": {},
    "gemma2": {"final_logit_softcapping": 3.0},
    "gpt_oss": {},
    "llama4_text": {},
    "diffllama": {},
    "gpt2": {},
}


@pytest.mark.usefixtures("float64_softmax")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_kind_of_attention_grows_spans(name, tokenizer):
    config = tiny_config(name, vocab_size=len(tokenizer), max_position_embeddings=512, **ARCHITECTURES[name])
    pipe = questioned(tokenizer, tiny_model(config, dtype=torch.float64))
    tolerance = 1e-6 if name == "llama4_text" else 1e-9
    found, every = assert_grown_as_the_rule_says(pipe, REPEATED, 0.3, 130, tolerance, max_span_words=9)
    assert 0 < found < every


def test_lists_streams_and_single_documents_agree(exact):
    texts = [REPEATED, "", "Apple met Steve Jobs.", REPEATED[:40]] * 2
    asked = {"candidate_labels": ["a", "b"], "threshold": 0.0, "overlap": "all", "growth_threshold": 0.4}
    exact.scorer.token_budget = 300
    alone = [exact(text, **asked) for text in texts]
    assert any(alone)
    for found in (exact(texts, **asked), list(exact(iter(texts), **asked))):
        for one, other in zip(alone, found, strict=True):
            assert [(e["start"], e["end"]) for e in one] == [(e["start"], e["end"]) for e in other]
            assert np.allclose([e["score"] for e in one], [e["score"] for e in other], rtol=0, atol=1e-9)


def test_the_callers_own_spans_always_exist(exact):
    spans = [(0, 3), (0, 12), (4, 18)]
    text = "The New York Times met New York."
    asked = {"candidate_labels": ["a"], "threshold": 0.0, "overlap": "all"}
    found = exact({"text": text, "spans": spans}, growth_threshold=1.0, **asked)
    assert sorted((e["start"], e["end"]) for e in found) == spans
    everything = exact({"text": text, "spans": spans}, growth=False, **asked)
    assert [e["score"] for e in found] == pytest.approx([e["score"] for e in everything], abs=1e-9)


def test_without_growth_everything_is_scored_and_the_question_shows_nowhere(exact):
    text = "Apple met Steve Jobs."
    asked = {"candidate_labels": ["a", "b"], "threshold": 0.0, "overlap": "all", "return_all_scores": True}
    found = exact(text, growth=False, **asked)
    config = DecodNERConfig(prompt=exact.model.config.prompt)
    plain = pipeline_of(DecodNERForSpanClassification.from_backbone(exact.model.backbone, config), exact.tokenizer)
    expected = plain(text, **asked)
    assert [(e["start"], e["end"]) for e in found] == [(e["start"], e["end"]) for e in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-9)


def test_growth_of_a_model_without_the_question_is_refused(exact):
    plain = pipeline_of(DecodNERForSpanClassification.from_backbone(exact.model.backbone), exact.tokenizer)
    assert plain.settings_for({}).growth is False
    with pytest.raises(ValueError, match="trained with the continuation question"):
        plain("Apple", candidate_labels=["a"], growth=True)


def test_wide_spans_of_the_caller_are_refused_where_spans_grow(exact):
    text = "a b c d e f"
    wide = {"candidate_labels": ["a"], "threshold": 0.0, "overlap": "all", "max_span_words": 4}
    with pytest.raises(
        ValueError, match=r"span \(2, 11\) has 5 words.* max_span_words=4: give a larger .*growth=False"
    ):
        exact({"text": text, "spans": [(0, 1), (2, 11)]}, **wide)
    with pytest.raises(ValueError, match=r"document 1: span \(1, 6\) has 5 words"):
        exact([{"text": text}, {"words": text.split(), "spans": [(1, 6)]}], **wide)
    for allowed in ({"growth": False}, {"max_span_words": 5}):
        assert len(exact({"text": text, "spans": [(2, 11)]}, **(wide | allowed))) == 1


@pytest.mark.parametrize("threshold", [-0.1, 1.1, "0.5", True])
def test_a_threshold_that_is_no_probability_is_refused(exact, threshold):
    with pytest.raises(ValueError, match="growth_threshold must be a number from 0 to 1"):
        exact("Apple", candidate_labels=["a"], growth_threshold=threshold)


def test_a_document_in_which_everything_goes_on_keeps_every_span(exact):
    asked = {"candidate_labels": ["a"], "threshold": 0.0, "overlap": "all", "max_span_words": 12}
    exact.scorer.token_budget = 100
    grown, every = (exact(REPEATED, **asked, **growth) for growth in ({"growth_threshold": 0.0}, {"growth": False}))
    assert [(e["start"], e["end"]) for e in grown] == [(e["start"], e["end"]) for e in every]


@pytest.mark.parametrize("budget", [100, 4096])
@pytest.mark.parametrize("width", [8, 32])
def test_a_list_of_names_costs_no_more_than_scoring_all_spans(tokenizer, monkeypatch, width, budget):
    pipe = questioned(tokenizer, tiny_native(vocab_size=len(tokenizer), max_position_embeddings=170))
    pipe.scorer.token_budget = budget
    nodes = {"score_rows": 0, "score_forest": 0}

    def counted(name):
        score = getattr(pipe.model, name)

        def run(rows, *args):
            nodes[name] += len(rows.token_ids)
            return score(rows, *args)

        return run

    for name in nodes:
        monkeypatch.setattr(pipe.model, name, counted(name))
    names = "Ana Bo Jean Picard New York Steel Ana Bo Cy and Washington Ana Zürich " * 3
    asked = {"max_span_words": width, "long_documents": "window"}
    (grown,) = pipe.scorer.score([encoded(pipe, names, growth_threshold=0.0, **asked)])
    (every,) = pipe.scorer.score([encoded(pipe, names, growth=False, **asked)])
    assert 0 < nodes["score_rows"] <= nodes["score_forest"]
    np.testing.assert_allclose(grown.label_logits, every.label_logits, rtol=0, atol=1e-4)


def test_the_configuration_keeps_growth(exact, tmp_path):
    exact.model.config.growth_threshold = 0.125
    exact.save_pretrained(tmp_path)
    loaded = DecodNERConfig.from_pretrained(tmp_path)
    assert (loaded.continuation, loaded.growth_threshold) == (True, 0.125)
    with pytest.raises(ValueError, match="growth_threshold"):
        DecodNERConfig(**(loaded.settings() | {"growth_threshold": 2.0}))


def test_the_report_counts_what_was_not_grown(exact):
    asked = {"candidate_labels": ["a"], "return_report": True, "max_span_words": 3}
    every = exact("Apple met Steve Jobs.", growth=False, **asked)["report"]
    grown = exact("Apple met Steve Jobs.", growth_threshold=1.0, **asked)["report"]
    assert "not_grown" not in every["candidates_left_out"]
    assert grown["candidates"] + grown["candidates_left_out"]["not_grown"] == every["candidates"]
    assert grown["candidates_left_out"]["not_read"] == 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copy_of_the_pipeline_still_asks_the_question(exact, duplicate):
    asked = {"candidate_labels": ["a", "b"], "threshold": 0.0, "overlap": "all", "growth_threshold": 0.5}
    assert duplicate(exact)(REPEATED, **asked) == exact(REPEATED, **asked)
