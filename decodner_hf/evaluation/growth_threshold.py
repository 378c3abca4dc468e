"""Finds the growth threshold of a model on dev sets: the largest at which they keep their F1.

In: examples that were scored exhaustively with the answers to the continuation question, and their decoders. Out: the
threshold, and what growing with it costs. Growth is simulated: nothing is scored again.
Knows nothing of models or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.arrays import BoolArray
from .labelled_scoring import Decoder, ScoredExamples
from .simulated_growth import GrowthAnswers

THRESHOLDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(np.arange(2, 19) / 20).tolist())
F1_LOST = 0.0005  # of F1 from 0 to 1, at most
KEPT_GOLD = 0.95  # of the gold spans of several words, in the check of the question
MOST_SCORED = 0.5  # of all candidates of several words, while that much gold is kept: guessing keeps as much of both

Scored = tuple[ScoredExamples, Decoder]


class UntrainedQuestionError(ValueError):
    """The answers to the continuation question do not say where longer entities begin."""


@dataclass(frozen=True)
class FittedGrowth:
    """A growth threshold, and what it does on the sets that it was fitted to.

    Attributes:
        threshold: probability from which on a span goes on.
        f1: mean micro F1 with spans grown.
        scored: part of the candidates that exist, from 0 to 1.
    """

    threshold: float
    f1: float
    scored: float


def fit_growth(sets: Sequence[Scored]) -> FittedGrowth | None:
    """Fits one threshold to several sets, each counting the same.

    Args:
        sets: scored examples with their decoders, all thresholds of labels fitted.

    Returns:
        The largest threshold at which, as at all smaller ones, the mean F1 is within `F1_LOST` of that of exhaustive
        scoring; None where a set was scored without the question, or no gold candidate has several words.

    Raises:
        UntrainedQuestionError: the answers are no better than a guess, or no threshold keeps the F1.
    """
    answers = [scored.growth for scored, _ in sets]
    gold = [scored.gold_label() > 0 for scored, _ in sets]
    known = [found for found in answers if found is not None]
    if len(known) < len(sets) or not any((g & (a.width > 1)).any() for g, a in zip(gold, known, strict=True)):
        return None
    _check_question(known, gold)
    reported = [_reported(scored, decoder) for scored, decoder in sets]
    parts = [scored.select(chosen) for (scored, _), chosen in zip(sets, reported, strict=True)]
    least = _mean_f1(sets, parts) - F1_LOST
    best = None
    for threshold in THRESHOLDS:
        exist = [found.exist(threshold) for found in known]
        grown = [part.select(e[chosen]) for part, e, chosen in zip(parts, exist, reported, strict=True)]
        f1 = _mean_f1(sets, grown)
        if f1 < least:
            break
        best = FittedGrowth(threshold, f1, float(np.concatenate(exist).mean()))
    if best is None:
        raise UntrainedQuestionError(
            f"growing spans loses F1 at any growth_threshold, even at {THRESHOLDS[0]:g}: train the continuation "
            "question longer, or calibrate with growth=False and use the model so."
        )
    return best


def _reported(scored: ScoredExamples, decoder: Decoder) -> BoolArray:
    """Returns bool [S]: which candidates reach a threshold; the others never matter."""
    reaches: BoolArray = (decoder.scores(scored)[:, 1:] >= decoder.thresholds).max(axis=1, initial=False)
    return reaches


def _mean_f1(sets: Sequence[Scored], parts: Sequence[ScoredExamples]) -> float:
    """Returns the mean F1 of the sets' decoders on the candidates in `parts`."""
    return float(np.mean([decoder.f1(part) for (_, decoder), part in zip(sets, parts, strict=True)]))


def _check_question(answers: Sequence[GrowthAnswers], gold: Sequence[BoolArray]) -> None:
    """Refuses answers with which keeping the gold spans means to score most candidates."""
    share = 1.0
    for threshold in THRESHOLDS:
        kept, scored = [], []
        for found, is_gold in zip(answers, gold, strict=True):
            several = found.width > 1
            exists = found.exist(threshold)
            kept.append(exists[several & is_gold])
            scored.append(exists[several])
        if np.concatenate(kept).mean() < KEPT_GOLD:
            break
        share = float(np.concatenate(scored).mean())
    if share > MOST_SCORED:
        raise UntrainedQuestionError(
            "the model does not answer the continuation question: to keep the gold spans of several words, "
            f"{100 * share:.0f}% of all candidates of several words are scored. Train it with continuation=True, or "
            "calibrate with growth=False and use the model so."
        )
