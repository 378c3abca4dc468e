import json
from dataclasses import replace
from itertools import product

import calibrate_open_types
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pipelines import tiny_pipeline

from decodner_hf import DecodNERConfig
from decodner_hf.data.examples import Example
from decodner_hf.evaluation.calibration import (
    GRID,
    Calibration,
    calibrate,
    fit,
    fit_jointly,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from decodner_hf.evaluation.labelled_scoring import Decoder, ScoredExamples, evaluate, score_examples
from decodner_hf.evaluation.span_metrics import SpanTable, span_scores

LABELS = ("A", "B")


def scored_of(logits, spans, gold, num_examples=1):
    """Candidates `spans` [S] of (example, start, end), and the gold rows (example, start, end, label)."""
    spans, gold = np.array(spans, np.int64).reshape(-1, 3), np.array(gold, np.int64).reshape(-1, 4)
    return ScoredExamples(
        labels=LABELS,
        start=spans[:, 1],
        end=spans[:, 2],
        label_logits=np.array(logits, np.float32).reshape(-1, 3),
        cu_spans=np.searchsorted(spans[:, 0], np.arange(num_examples + 1)),
        gold=SpanTable.of(*gold.T, num_examples=num_examples),
        documents=np.arange(num_examples),
        coverage={},
        seconds=1.0,
    )


@st.composite
def scored_examples(draw):
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    spans = [(e, a, b) for e in range(5) for a in range(4) for b in range(a + 1, min(a + 3, 5) + 1)]
    gold = [(*spans[i], generator.integers(2)) for i in generator.choice(len(spans), 9, replace=False)]
    logits = generator.normal(0, 2, (len(spans), 3))
    for *span, label in gold:
        logits[spans.index(tuple(span)), label + 1] += 1.5
    return scored_of(logits, spans, gold, num_examples=5)


def f1(scored, decoder):
    return span_scores(scored.gold, decoder.decode(scored), LABELS)["f1"]


def decoder_of(calibration):
    own = tuple(calibration.label_thresholds.get(label, calibration.threshold) for label in LABELS)
    return Decoder(own, calibration.temperature, "flat", calibration.flat_selection)


# ---------------------------------------------------------------- temperature


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_factor_on_the_logits(factor):
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (40000, 3))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gold = (generator.random((40000, 1)) > shares.cumsum(1)).sum(1)
    assert fit_temperature(logits * factor, gold) == pytest.approx(factor, rel=0.03)


@settings(max_examples=25, deadline=None)
@given(scored_examples())
def test_no_temperature_nearby_is_better(scored):
    gold = scored.gold_label()
    best = fit_temperature(scored.label_logits, gold)
    lowest = negative_log_likelihood(scored.label_logits, gold, best)
    for other in (0.06, 0.5, 1.0, 2.0, 19.0, best * 1.05, best / 1.05):
        if 1 / 20 <= other <= 20:
            assert lowest <= negative_log_likelihood(scored.label_logits, gold, other) + 1e-6


def test_negative_log_likelihood_by_hand_and_at_the_extremes():
    assert negative_log_likelihood(np.log([[1.0, 3.0]]), np.array([1]), 1.0) == pytest.approx(np.log(4 / 3))
    assert negative_log_likelihood(np.array([[1e6, 0.0]]), np.array([1]), 1.0) == pytest.approx(1e6)


# ---------------------------------------------------------------- thresholds


@settings(max_examples=15, deadline=None)
@given(scored_examples())
def test_fitted_settings_reach_the_f1_they_promise_and_no_general_threshold_beats_them(scored):
    before = Decoder((0.5, 0.5))
    fitted = fit(scored, before, min_support=1)
    assert fitted.f1_before == pytest.approx(f1(scored, before))
    assert fitted.f1 == pytest.approx(f1(scored, decoder_of(fitted)))
    for value, selection in product(GRID, ("greedy", "exact")):
        assert fitted.f1 >= f1(scored, Decoder((value, value), fitted.temperature, "flat", selection)) - 1e-12
    assert fitted.nll <= fitted.nll_before + 1e-9


@settings(max_examples=8, deadline=None)
@given(scored_examples())
def test_no_single_threshold_can_be_moved_for_the_better(scored):
    fitted = fit(scored, Decoder((0.5, 0.5)), min_support=1)
    decoder = decoder_of(fitted)
    own = [index for index, name in enumerate(scored.labels) if name in fitted.label_thresholds]
    assert own
    for label, value in product(own, GRID):
        moved = list(decoder.thresholds)
        moved[label] = value
        assert f1(scored, replace(decoder, thresholds=tuple(moved))) <= fitted.f1 + 1e-12


def test_rare_labels_keep_the_general_threshold():
    spans = [(0, 2 * i, 2 * i + 1) for i in range(40)]
    logits = [[0.0, 2.0, -9.0]] * 30 + [[0.0, -9.0, -1.5]] * 2 + [[0.0, -1.0, -9.0]] * 8
    gold = [(*span, 0) for span in spans[:30]] + [(*span, 1) for span in spans[30:32]]
    scored = scored_of(logits, spans, gold)
    assert list(fit(scored, Decoder((0.5, 0.5)), min_support=20).label_thresholds) == ["A"]
    assert list(fit(scored, Decoder((0.5, 0.5)), min_support=2).label_thresholds) == ["A", "B"]
    assert fit(scored, Decoder((0.5, 0.5)), min_support=2).f1 == 1.0


def test_selection_is_fitted_where_it_matters():
    spans = [(0, 0, 1), (0, 0, 2), (0, 1, 2)]  # greedy takes the long one, exact the two short ones
    logits = [[0.0, 1.9, -9.0], [0.0, 2.0, -9.0], [0.0, 1.9, -9.0]]
    assert fit(scored_of(logits, spans, [(0, 0, 2, 0)]), Decoder((0.5, 0.5)), 1).flat_selection == "greedy"
    shorts = scored_of(logits, spans, [(0, 0, 1, 0), (0, 1, 2, 0)])
    assert fit(shorts, Decoder((0.5, 0.5)), 1).flat_selection == "exact"
    assert fit(shorts, Decoder((0.5, 0.5), overlap="all"), 1).flat_selection == "greedy"


def test_what_cannot_be_calibrated_is_refused():
    scored = scored_of([[0.0, 1.0, 1.0]], [(0, 0, 1)], [(0, 0, 9, 0)])
    with pytest.raises(ValueError, match="none of the 1 gold spans"):
        fit(scored, Decoder((0.5, 0.5)))
    with pytest.raises(ValueError, match="multi_label"):
        fit(scored, Decoder((0.5, 0.5), overlap="all", multi_label=True))


# ---------------------------------------------------------------- use


def test_the_pipeline_uses_what_was_fitted(tmp_path):
    pipe = tiny_pipeline()
    examples = [
        Example(["Tim", "Cook", "runs", "Apple"], ((0, 2, "A"), (3, 4, "B"))),
        Example(["Apple", "likes", "Rome"], ((0, 1, "B"), (2, 3, "A"))),
    ]
    choices = {"candidate_labels": list(LABELS), "max_span_words": 2}
    before = evaluate(pipe, examples, **choices)["f1"]
    fitted = calibrate(pipe, examples, min_support=1, **choices)
    assert evaluate(pipe, examples, **choices)["f1"] == fitted.f1_before == before  # nothing changed yet
    assert fitted.f1 > before
    pipe.model.config.label_thresholds = {"stale": 0.9}
    fitted.apply(pipe.model.config)
    assert evaluate(pipe, examples, **choices)["f1"] == pytest.approx(fitted.f1)
    spans = [
        (entity["start_word"], entity["end_word"], entity["entity_group"])
        for entity in pipe(examples[0].content, is_split_into_words=True, **choices)
    ]
    correct = len(set(spans) & set(examples[0].entities))
    other = evaluate(pipe, examples[:1], **choices)
    assert (other["correct"], other["predicted"]) == (correct, len(spans))
    pipe.model.config.save_pretrained(tmp_path)
    saved = DecodNERConfig.from_pretrained(tmp_path)
    assert (saved.temperature, saved.threshold) == (fitted.temperature, fitted.threshold)
    assert saved.label_thresholds == fitted.label_thresholds
    assert Calibration(**fitted.to_dict()) == fitted


def test_reliability_by_hand():
    spans = [(0, i, i + 1) for i in range(4)]
    logits = np.log([[0.03, 0.94, 0.03], [0.03, 0.94, 0.03], [0.96, 0.02, 0.02], [0.3, 0.25, 0.45]])
    report = reliability(scored_of(logits, spans, [(*spans[0], 0), (*spans[3], 1)]), Decoder((0.5, 0.5)))
    bins = report["bins"]
    assert [row["count"] for row in bins] == [1, 0, 0, 0, 1, 0, 0, 0, 0, 2]
    assert (bins[4]["score"], bins[4]["accuracy"]) == (pytest.approx(0.45), 1.0)
    assert (bins[9]["score"], bins[9]["accuracy"]) == (pytest.approx(0.94), 0.5)
    assert bins[1]["score"] is None
    assert report["expected_calibration_error"] == pytest.approx((0.55 + 2 * 0.44) / 3)


@given(st.lists(scored_examples(), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_one_threshold_for_several_sets_is_the_best_of_the_grid_on_their_mean(sets):
    start = Decoder((0.5, 0.5), 1.0, "flat", "greedy")
    fitted = fit_jointly([(scored, start) for scored in sets])
    assert fitted.label_thresholds == {}
    tried = {}
    for way, threshold in product(("greedy", "exact"), GRID):
        decoder = Decoder((threshold, threshold), fitted.temperature, "flat", way)
        tried[way, threshold] = np.mean([f1(scored, decoder) for scored in sets])
    assert fitted.f1 == pytest.approx(max(tried.values()))
    assert tried[fitted.flat_selection, fitted.threshold] == pytest.approx(fitted.f1)
    assert fitted.f1_before == pytest.approx(np.mean([f1(scored, start) for scored in sets]))
    means = [
        np.mean([negative_log_likelihood(scored.label_logits, scored.gold_label(), value) for scored in sets])
        for value in (fitted.temperature * 0.97, fitted.temperature, fitted.temperature * 1.03)
    ]
    assert means[1] == min(means) or fitted.temperature > 19.9  # the end of the range searched
    assert fitted.nll == pytest.approx(means[1])


def test_sets_without_gold_candidates_are_refused():
    nothing = scored_of([[0, 0, 0]], [(0, 0, 1)], [(0, 5, 9, 0)])
    with pytest.raises(ValueError, match="gold spans among its candidates"):
        fit_jointly([(nothing, Decoder((0.5, 0.5), 1.0, "flat", "greedy"))])
    with pytest.raises(ValueError, match="no set to calibrate on"):
        fit_jointly([])


def test_the_command_fits_with_the_labels_as_they_are_asked_for_and_saves(tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    row = {"tokens": ["Tim", "Cook", "runs", "Apple"], "entities": [[0, 2, "PER"], [3, 4, "ORG"]]}
    (tmp_path / "dev.jsonl").write_text(json.dumps(row))
    names = {"PER": {"label": "person", "description": "a named human being"}, "ORG": "company"}
    (tmp_path / "sets.json").write_text(json.dumps([{"path": str(tmp_path), "label_map": names}]))
    command = ["--model", str(tmp_path / "model"), "--sets", str(tmp_path / "sets.json"), "--labels", "person", "city"]
    assert calibrate_open_types.main([*command, "--max-positions", "384"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    config = DecodNERConfig.from_pretrained(tmp_path / "model")
    assert (config.temperature, config.threshold) == (printed["temperature"], printed["threshold"])
    assert config.labels == {"person": None, "city": None}
    assert config.text_config.max_position_embeddings == 384
    asked = {"person": "a named human being", "company": None}
    example = Example(row["tokens"], ((0, 2, "person"), (3, 4, "company")))
    scored = score_examples(tiny_pipeline(), [example], candidate_labels=asked)
    expected = fit_jointly([(scored, Decoder((0.5, 0.5)))])
    assert printed["nll"] == pytest.approx(expected.nll, rel=1e-4)
    assert printed["threshold"] == expected.threshold
