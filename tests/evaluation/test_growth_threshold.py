"""The growth threshold comes from one exhaustive pass, and simulated growth is what growing gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_pipelines import tiny_native
from tokenizers_for_tests import byte_level_single_digits

from decodner_hf import DecodNERConfig, DecodNERForSpanClassification, DecodNERPipeline
from decodner_hf.data.document_context import Context
from decodner_hf.data.examples import Example
from decodner_hf.evaluation.calibration import FITTED, calibrate, fit_jointly, uncalibrated
from decodner_hf.evaluation.growth_threshold import THRESHOLDS, UntrainedQuestionError, fit_growth
from decodner_hf.evaluation.labelled_scoring import Decoder, ScoredExamples, evaluate, score_examples
from decodner_hf.evaluation.simulated_growth import GrowthAnswers
from decodner_hf.evaluation.span_metrics import SpanTable

LABELS = ("A", "B")
WORDS = ["Ana", "Bo", "(Cy)", "met", "New York", "Jean-Luc", "1999", "東京"]


def questioned(**settings):
    """A pipeline whose model answers the continuation question, at random."""
    tokenizer = byte_level_single_digits()
    native = tiny_native(vocab_size=len(tokenizer), max_position_embeddings=settings.pop("positions", 1024)).double()
    model = DecodNERForSpanClassification.from_backbone(native, DecodNERConfig(continuation=True, **settings))
    return DecodNERPipeline(model=model, tokenizer=tokenizer, device="cpu", task="decodner-ner")


def examples(count=6, seed=0):
    """Texts and lists of words in documents of two."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        words = [WORDS[index] for index in generator.integers(len(WORDS), size=int(generator.integers(3, 14)))]
        first = int(generator.integers(len(words) - 2))
        made.append(Example(words, ((first, first + 2, "A"),), str(number // 2)))
    return made


def rows(scored):
    keys = (scored.example, scored.start, scored.end)
    return list(zip(*(key.tolist() for key in keys), scored.label_logits.tolist(), strict=True))


@pytest.mark.parametrize(
    ("positions", "labels", "context"),
    [(1024, 2, None), (1024, 2, Context("document", 40)), (200, 2, Context("document", 200)), (1024, 90, None)],
    ids=["alone", "documents", "windows", "shards"],
)
def test_simulated_growth_is_growth(positions, labels, context):
    pipe = questioned(positions=positions)
    asked = {"candidate_labels": ["A", *(f"type{number}" for number in range(labels - 1))], "max_span_words": 6}
    every = score_examples(pipe, examples(), context=context, ask_growth=True, **asked)
    exhaustive = score_examples(pipe, examples(), context=context, growth=False, **asked)
    np.testing.assert_allclose(every.label_logits, exhaustive.label_logits, rtol=0, atol=1e-9)
    assert every.label_logits.shape[1] == labels + 1
    ordered = np.unique(np.round(every.growth.goes_on, 7))
    seen = set()
    for place in np.linspace(0, len(ordered) - 2, 9).astype(int):
        threshold = float(ordered[place : place + 2].mean())  # no probability is near it
        grown = score_examples(pipe, examples(), context=context, growth=True, growth_threshold=threshold, **asked)
        simulated = every.select(every.growth.exist(threshold))
        found, expected = rows(grown), rows(simulated)
        assert [row[:3] for row in found] == [row[:3] for row in expected]
        assert np.allclose([row[3] for row in found], [row[3] for row in expected], rtol=0, atol=1e-9)
        seen.add(len(found))
    assert len(seen) > 4


def answered(right, wrong):
    """One example in which each word starts spans of up to three, and every tenth place a gold span of three words.

    `right` and `wrong` are the probabilities that spans go on, of prefixes of gold spans and of all others.
    """
    places = np.repeat(np.arange(200), 3)
    width = np.tile([1, 2, 3], 200)
    is_gold = (places % 10 == 0) & (width == 3)
    goes_on = np.where((places % 10 == 0) & (width < 3), right, wrong)
    start, end = 10 * places, 10 * places + 3 * width
    logits = np.zeros((600, 3))
    logits[is_gold, 1] = 5.0
    logits[:, 0] = 2.0
    gold = [np.zeros(20, np.int64), start[is_gold], end[is_gold], np.zeros(20, np.int64)]
    return ScoredExamples(
        labels=LABELS,
        start=start,
        end=end,
        label_logits=logits,
        cu_spans=np.array([0, 600]),
        gold=SpanTable.of(*gold, num_examples=1),
        documents=np.zeros(1, np.int64),
        coverage={},
        seconds=1.0,
        growth=GrowthAnswers(places, width, goes_on),
    )


DECODER = Decoder((0.5, 0.5))


def test_the_threshold_is_the_largest_that_keeps_f1():
    scored = answered(0.42, 0.0003)
    found = fit_growth([(scored, DECODER)])
    assert found.threshold == max(value for value in THRESHOLDS if value <= 0.42)
    assert found.f1 == DECODER.f1(scored) == 1.0
    assert found.scored == pytest.approx((200 + 20 * 2) / 600)


def test_losing_less_than_the_limit_is_allowed():
    scored = answered(0.42, 0.0)
    many = 2100  # of which one is lost at once: F1 falls by less than 0.0005
    parts = [answered(0.42, 0.0) for _ in range(many // 20)]
    rare = replace(parts[0], growth=replace(parts[0].growth, goes_on=parts[0].growth.goes_on.copy()))
    rare.growth.goes_on[0] = 0.00015
    sets = [(rare, DECODER), *((part, DECODER) for part in parts[1:])]
    assert fit_growth(sets).threshold == fit_growth([(scored, DECODER)]).threshold
    rare.growth.goes_on[0] = 0.00005
    with pytest.raises(UntrainedQuestionError, match="at any growth_threshold"):
        fit_growth([(rare, DECODER)])


@pytest.mark.parametrize("answers", [(1.0, 1.0), (0.0, 0.0), (0.3, 0.3), "random"], ids=str)
def test_answers_that_say_nothing_are_noticed(answers):
    if answers == "random":
        scored = answered(0.5, 0.5)
        random = np.random.default_rng(0).random(600)
        scored = replace(scored, growth=replace(scored.growth, goes_on=random))
    else:
        scored = answered(*answers)
    with pytest.raises(UntrainedQuestionError, match=r"does not answer the continuation question.*continuation=True"):
        fit_growth([(scored, DECODER)])


def test_without_gold_spans_of_several_words_nothing_is_fitted():
    scored = answered(0.4, 0.1)
    single = SpanTable.of(*(np.array([value]) for value in (0, 10, 13, 0)), num_examples=1)
    assert fit_growth([(replace(scored, gold=single), DECODER)]) is None
    assert fit_growth([(replace(scored, growth=None), DECODER)]) is None


def test_several_sets_get_one_threshold():
    low, high = answered(0.21, 0.0), answered(0.6, 0.0)
    fitted = fit_jointly([(low, DECODER), (high, DECODER)])
    assert fitted.growth_threshold == max(value for value in THRESHOLDS if value <= 0.21)
    assert fitted.f1_grown == pytest.approx(fitted.f1)


def trained(monkeypatch):
    """A pipeline whose model, as far as calibration sees, finds what is gold and answers the question rightly."""
    pipe = questioned(entity_labels=list(LABELS), max_span_words=32)

    def answer(scored):
        prefix = np.zeros(len(scored.start), bool)
        for number, start, end, _ in scored.gold.rows.tolist():
            prefix |= (scored.example == number) & (scored.start == start) & (scored.end < end)
        logits = np.concatenate([np.full((len(prefix), 1), 2.0), 5.0 * scored.is_gold()], axis=1)
        growth = replace(scored.growth, goes_on=np.where(prefix, 0.33, 0.0))
        return replace(scored, label_logits=logits, growth=growth)

    def scored_with_answers(*args, **kwargs):
        return answer(score_examples(*args, **kwargs))

    monkeypatch.setattr("decodner_hf.evaluation.calibration.score_examples", scored_with_answers)
    return pipe


def test_calibration_writes_the_threshold_into_the_configuration(monkeypatch):
    pipe = trained(monkeypatch)
    calibration = calibrate(pipe, examples())
    assert calibration.growth_threshold == pytest.approx(0.3)
    assert calibration.f1_grown == calibration.f1 == 1.0
    calibration.apply(pipe.model.config)
    assert pipe.model.config.growth_threshold == calibration.growth_threshold
    assert pipe.settings_for({}).growth_threshold == calibration.growth_threshold
    assert calibration.to_dict()["grown_share"] < 1
    assert "growth_threshold" in FITTED
    assert uncalibrated()["growth_threshold"] == DecodNERConfig().growth_threshold


def test_calibration_scores_spans_of_up_to_eight_words(monkeypatch):
    pipe = trained(monkeypatch)
    widths = []
    encode = pipe.encoder.encode

    def seen(documents, settings):
        widths.append((settings.max_span_words, settings.growth))
        return encode(documents, settings)

    monkeypatch.setattr(pipe.encoder, "encode", seen)
    calibrate(pipe, examples())
    assert set(widths) == {(8, False)}


def test_an_untrained_question_is_an_error_of_calibration_unless_growth_is_off():
    pipe = questioned(entity_labels=list(LABELS))
    with torch.no_grad():  # the answers are far apart, the same ones everywhere
        goes_on, ends = pipe.prompts.question
        head = pipe.model.get_output_embeddings().weight
        head[goes_on] = head[ends]
    with pytest.raises(UntrainedQuestionError, match="growth=False"):
        calibrate(pipe, examples())
    calibration = calibrate(pipe, examples(), growth=False)
    assert calibration.growth_threshold is None
    pipe._preprocess_params["growth"] = False  # as an argument at construction
    assert calibrate(pipe, examples()).growth_threshold is None
    before = pipe.model.config.growth_threshold
    calibration.apply(pipe.model.config)
    assert pipe.model.config.growth_threshold == before


def test_a_model_without_the_question_is_calibrated_as_ever():
    pipe = questioned(entity_labels=list(LABELS))
    plain = DecodNERPipeline(
        model=DecodNERForSpanClassification.from_backbone(
            pipe.model.backbone, DecodNERConfig(entity_labels=list(LABELS))
        ),
        tokenizer=pipe.tokenizer,
        device="cpu",
        task="decodner-ner",
    )
    found, without = calibrate(plain, examples()), calibrate(pipe, examples(), growth=False, max_span_words=8)
    assert found.growth_threshold is None
    assert found.temperature == pytest.approx(without.temperature)
    assert evaluate(plain, examples())["f1"] >= 0


def test_the_coverage_counts_gold_spans_that_were_not_grown():
    pipe = questioned(entity_labels=list(LABELS))
    every = score_examples(pipe, examples(), growth_threshold=0.0).coverage
    none = score_examples(pipe, examples(), growth_threshold=1.0).coverage
    assert every["not_grown"] == 0
    assert none["not_grown"] == every["candidate"] > 0  # all of several words
