"""Rounds of several groups share passes: answers stay those of each document alone, and no pass is small."""

import numpy as np
import pytest
import torch
from architectures import tiny_config, tiny_model
from test_grown_scoring import ARCHITECTURES, REPEATED, pipeline_of, questioned
from tiny_pipelines import tiny_native
from transformers import AutoTokenizer

from decodner_hf import DecodNERForSpanClassification
from decodner_hf.core.pass_queues import GrowthQueue, documents_by_pass
from decodner_hf.core.pipeline_io import Document
from decodner_hf.core.scoring import activation_bytes_per_node
from decodner_hf.default_model import default_model

TEXTS = [REPEATED, "Apple met Steve Jobs.", "", REPEATED[:60], "don't (Apple) re-open AT&T.", REPEATED[20:150]] * 2
ASKED = {"candidate_labels": ["a", "b"], "growth_threshold": 0.45, "max_span_words": 12}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(default_model())


def float64_pipeline(tokenizer, cue=""):
    native = tiny_native(vocab_size=len(tokenizer), max_position_embeddings=4096).double()
    return questioned(tokenizer, native, prompt={"answer_cue": cue})


@pytest.fixture
def pipe(tokenizer):
    return float64_pipeline(tokenizer)


def prepared(pipe, texts=TEXTS, **choices):
    settings = pipe.settings_for(ASKED | choices)
    documents = [Document(text, pipe.labels_for(settings.candidate_labels)) for text in texts]
    return pipe.encoder.encode(documents, settings, 2)


def ridden(pipe, documents, group=3):
    """The documents scored as in a stream, `group` of them at a time."""
    queue = GrowthQueue(pipe.scorer)
    found = [run for start in range(0, len(documents), group) for run in queue.add(documents[start : start + group])]
    return [document for run in [*found, *queue.finish()] for document in run]


def counted(pipe, monkeypatch):
    """From now on notes of each pass its rows and, before it, the kept ones."""
    passes, score = [], pipe.model.score_rows

    def counting(rows, tokens, cache, kept_rows):
        passes.append((len(rows.token_ids), kept_rows.num_rows))
        return score(rows, tokens, cache, kept_rows)

    monkeypatch.setattr(pipe.model, "score_rows", counting)
    return passes


def assert_same(found, expected, tolerance=1e-9):
    assert [item.prepared.source for item in found] == [item.prepared.source for item in expected]
    for one, other in zip(found, expected, strict=True):
        for mine, theirs in zip(one.prepared.windows, other.prepared.windows, strict=True):
            assert mine.candidates.start.tolist() == theirs.candidates.start.tolist()
            assert mine.candidates.end.tolist() == theirs.candidates.end.tolist()
        assert np.abs(one.label_logits - other.label_logits).max(initial=0) <= tolerance


@pytest.mark.parametrize("cue", ["", " Type:"], ids=["no_cue", "cue"])
@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("budget", [1, 120, 600])
def test_documents_that_share_passes_are_scored_as_alone(tokenizer, cue, budget, ahead):
    pipe = float64_pipeline(tokenizer, cue)
    documents = prepared(pipe)
    expected = [pipe.scorer.score([document])[0] for document in documents]
    pipe.scorer.token_budget = budget
    growing = pipe.scorer.growing(documents[0])
    growing._ahead = ahead  # as on a GPU
    assert_same(growing.score(documents), expected)
    assert_same(ridden(pipe, documents), expected)


@pytest.mark.usefixtures("float64_softmax")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rounds_ride_under_every_kind_of_attention(name, tokenizer, monkeypatch):
    config = tiny_config(name, vocab_size=len(tokenizer), max_position_embeddings=512, **ARCHITECTURES[name])
    pipe = questioned(tokenizer, tiny_model(config, dtype=torch.float64))
    documents = prepared(pipe, TEXTS[:6])
    expected = [pipe.scorer.score([document])[0] for document in documents]
    pipe.scorer.token_budget = 250
    passes = counted(pipe, monkeypatch)
    assert_same(ridden(pipe, documents, 1), expected, 1e-6 if name == "llama4_text" else 1e-9)
    assert any(kept for _, kept in passes)


def test_with_riding_passes_are_fewer_and_fuller(pipe, monkeypatch):
    documents = prepared(pipe, TEXTS * 5)
    pipe.scorer.token_budget = 900
    passes = counted(pipe, monkeypatch)
    results = ridden(pipe, documents, 6)
    with_riding = list(passes)
    passes.clear()
    most = pipe.scorer.growing(documents[0])
    most.score(documents[:1])
    passes.clear()
    without = [result for run in documents_by_pass(documents, most._most_nodes) for result in pipe.scorer.score(run)]
    assert_same(results, without)
    assert sum(rows for rows, _ in with_riding) == sum(rows for rows, _ in passes)
    assert len(with_riding) < 0.6 * len(passes)
    planned = [rows + kept * most._kept_share for rows, kept in with_riding]
    assert np.median(planned) > 0.6 * most._most_nodes
    assert max(planned) <= 1.1 * most._most_nodes  # the first round is planned by a guess


@pytest.mark.parametrize("heads", [1, 4], ids=["few_keys", "many_keys"])
def test_passes_and_kept_rows_take_little_more_memory_than_exhaustive_passes(tokenizer, heads, monkeypatch):
    native = tiny_native(vocab_size=len(tokenizer), max_position_embeddings=4096, num_key_value_heads=heads)
    pipe = questioned(tokenizer, native)
    pipe.scorer.token_budget = 1000
    score, taken = pipe.model.score_rows, []

    def measuring(rows, tokens, cache, kept_rows):
        logits = score(rows, tokens, cache, kept_rows)
        taken.append(len(rows.token_ids) * activation_bytes_per_node(pipe.model) + kept_rows.nbytes)
        return logits

    monkeypatch.setattr(pipe.model, "score_rows", measuring)
    ridden(pipe, prepared(pipe, TEXTS * 5), 6)
    assert max(taken) <= 1.5 * 1000 * activation_bytes_per_node(pipe.model)


def test_kept_rows_are_dropped_with_their_documents(pipe):
    documents = prepared(pipe, ["Apple met Steve Jobs."] * 8, growth_threshold=1.0)
    growing = pipe.scorer.growing(documents[0])
    growing.score(documents)
    assert growing._rounds.num_kept == 0
    assert growing._rounds.is_idle


def test_one_long_name_holds_up_the_output_for_a_few_passes_only(pipe):
    everything = prepared(pipe, [" ".join(["New"] * 40)], growth_threshold=0.0, max_span_words=32)
    growing = pipe.scorer.growing(everything[0])
    growing.add(everything)
    steps = 0
    while growing.pending:
        growing.step()
        steps += 1
    assert steps <= 6


def test_documents_beyond_the_budget_and_other_label_sets_keep_their_place(pipe):
    documents = (
        prepared(pipe, TEXTS[:4]) + prepared(pipe, TEXTS[:2], candidate_labels=["c"]) + prepared(pipe, TEXTS[:3])
    )
    expected = [pipe.scorer.score([document])[0] for document in documents]
    for budget in (20, 60, 5000):  # the longest document has more tokens than the first two
        pipe.scorer.token_budget = budget
        assert_same(ridden(pipe, documents, 4), expected)


def test_where_memory_runs_out_what_is_not_done_starts_anew(pipe, monkeypatch):
    documents = prepared(pipe)
    expected = [pipe.scorer.score([document])[0] for document in documents]
    pipe.scorer.token_budget = 400
    score, calls = pipe.model.score_rows, []

    def failing(*given):
        calls.append(given)
        if len(calls) in (3, 9):
            raise torch.OutOfMemoryError("too small")
        return score(*given)

    monkeypatch.setattr(pipe.model, "score_rows", failing)
    assert_same(ridden(pipe, documents), expected)
    assert pipe.scorer.token_budget == 100


def test_results_before_a_document_that_cannot_be_scored_are_not_lost(pipe, monkeypatch):
    documents = prepared(pipe, [*TEXTS[:4], "東京", *TEXTS[4:6]])
    expected = [pipe.scorer.score([document])[0] for document in documents[:4]]
    chains = [document.document.chain_token_ids for document in documents]
    bad = np.setdiff1d(chains[4], np.concatenate([*chains[:4], *chains[5:]]))
    score = pipe.model.score_rows

    def refusing(rows, *rest):
        if np.isin(bad, rows.token_ids).all():
            raise ValueError("no such pass")
        return score(rows, *rest)

    monkeypatch.setattr(pipe.model, "score_rows", refusing)
    queue, found = GrowthQueue(pipe.scorer), []

    def results():
        yield from queue.add(documents)
        yield from queue.finish()

    with pytest.raises(ValueError, match="no such pass"):
        found.extend(document for run in results() for document in run)
    assert_same(found, expected)


def test_new_weights_are_used_from_the_next_pass_on(pipe, tokenizer):
    documents = prepared(pipe)
    pipe.scorer.token_budget = 300
    growing = pipe.scorer.growing(documents[0])
    growing.add(documents)
    early = growing.step()
    changed = tiny_native(vocab_size=len(tokenizer), max_position_embeddings=4096, initializer_range=0.5).double()
    pipe.model.backbone.load_state_dict(changed.state_dict())
    late = []
    while growing.pending:
        late += growing.step()
    fresh = pipeline_of(DecodNERForSpanClassification.from_backbone(changed, pipe.model.config), pipe.tokenizer)
    assert_same(late, [fresh.scorer.score([document])[0] for document in documents[len(early) :]])
