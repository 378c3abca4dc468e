"""Scores do not depend on how documents are packed: budgets, windows, lists, label sets."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_pipelines import tiny_float64, tiny_pipeline
from transformers import AutoModelForCausalLM, AutoTokenizer
from varied_documents import varied_text

from decodner_hf import DecodNERPipeline
from decodner_hf.default_model import default_model

UNLIMITED = 10**9
EVERYTHING = {"threshold": 0.0, "overlap": "all", "return_all_scores": True}
TEXTS = st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), max_size=16).map(varied_text)
ANY_TEXTS = st.lists(TEXTS | st.text(max_size=30).filter(lambda text: text.isprintable()), max_size=3)
BUDGETS = st.sampled_from([1, 33, 64, 130, 300, 1000, 4096])
LABELS = st.sampled_from([1, 3, 24]).map(lambda count: [f"type{number}" for number in range(count)])


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(default_model())


@pytest.fixture(scope="module", params=[4096, 200], ids=["whole", "windows"])
def exact(request, tokenizer):
    """A tiny random Llama in float64; one of few positions reads most documents in windows."""
    model = tiny_float64(vocab_size=len(tokenizer), max_position_embeddings=request.param)
    return tiny_pipeline(tokenizer, model)


@pytest.fixture(scope="module")
def packaged(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(default_model(), dtype="float32")
    return DecodNERPipeline(model=model, tokenizer=tokenizer, device="cpu", task="decodner-ner")


def assert_packing_changes_nothing(pipe, texts, labels, width, budget, tolerance):
    asked = {"candidate_labels": labels, "max_span_words": width} | EVERYTHING
    pipe.scorer.token_budget = UNLIMITED
    expected = [pipe(text, **asked) for text in texts]
    pipe.scorer.token_budget = budget
    for found in ([pipe(text, **asked) for text in texts], pipe(texts, **asked)):
        for text, one, other in zip(texts, expected, found, strict=True):
            assert [(e["start"], e["end"]) for e in one] == [(e["start"], e["end"]) for e in other]
            scores, others = (np.array([list(e["scores"].values()) for e in rows]) for rows in (one, other))
            assert np.abs(scores - others).max(initial=0.0) <= tolerance, (text, budget)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=ANY_TEXTS, labels=LABELS, width=st.integers(1, 8), budget=BUDGETS)
def test_scores_are_the_same_in_any_packing(exact, texts, labels, width, budget):
    assert_packing_changes_nothing(exact, texts, labels, width, budget, 1e-9)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=ANY_TEXTS, width=st.integers(1, 5), budget=BUDGETS)
def test_the_packaged_models_scores_are_the_same_in_any_packing(packaged, texts, width, budget):
    labels = ["person", "organization", "location"]
    assert_packing_changes_nothing(packaged, texts, labels, width, budget, 1e-5)


@pytest.mark.parametrize("budget", [130, 64])
def test_spans_off_the_order_of_their_paths_keep_their_own_scores(packaged, budget):
    """The document has more nodes than the budget, its paths fewer: its spans come back as one piece, out of order."""
    astronauts = "\U0001f469\U0001f3fd\u200d\U0001f680" * 2
    labels = ["person", "organization", "location"]
    assert_packing_changes_nothing(packaged, [f"{astronauts} Jean-Luc\x85\u2000"], labels, 5, budget, 1e-5)


def test_hyphenated_text_beyond_the_budget_keeps_its_scores(exact):
    text = "The well-known co-founder of Rolls-Royce met Jean-Luc O'Neil in Baden-Baden. " * 3
    assert_packing_changes_nothing(exact, [text], ["person"], 8, 500, 1e-9)
