"""Calibrates a model on a dev set: temperature, thresholds, and the way of selecting entities.

In: a pipeline and labelled examples that it was not trained on. Out: a `Calibration`, which goes into the model's
configuration and is then used by default. The examples are scored once and decoded many times.
Knows nothing of files. Never calibrate on a test set.

Temperature scaling: Guo et al., "On calibration of modern neural networks" (2017, arXiv:1706.04599).
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..core.arrays import BoolArray, FloatingArray, IntArray
from ..core.configuration import FLAT_SELECTIONS, DecodNERConfig
from ..core.pipeline import DecodNERPipeline
from ..data.document_context import Context
from ..data.examples import Example
from .labelled_scoring import Decoder, ScoredExamples, score_examples

FITTED = ("temperature", "threshold", "label_thresholds", "flat_selection")  # as the model's configuration has them
GRID = (0.01, 0.02, *(np.arange(1, 20) / 20).tolist(), 0.98, 0.99)  # thresholds tried
MIN_SUPPORT = 20  # gold spans that a label needs for a threshold of its own
LARGEST_TEMPERATURE = 20.0  # and its inverse the smallest
BINS = 10
GOLDEN = (5.0**0.5 - 1.0) / 2.0


@dataclass(frozen=True)
class Calibration:
    """The fitted values, and how much they help on the examples they were fitted to.

    Attributes:
        temperature: divides the label logits.
        threshold: for labels without one of their own.
        label_thresholds: label -> threshold, for labels frequent enough.
        flat_selection: "greedy" or "exact".
        nll: mean negative log-likelihood of the candidates' gold labels with this temperature.
        nll_before: the same with the model's earlier temperature.
        f1: micro F1 on the same examples with these settings.
        f1_before: the same with the model's earlier settings.
        num_examples: number of examples used.
        num_gold: number of their gold spans.
    """

    temperature: float
    threshold: float
    label_thresholds: dict[str, float]
    flat_selection: str
    nll: float
    nll_before: float
    f1: float
    f1_before: float
    num_examples: int
    num_gold: int

    def apply(self, config: DecodNERConfig) -> None:
        """Writes the values into a model's configuration, which the pipeline reads at every call."""
        for name in FITTED:
            setattr(config, name, copy(getattr(self, name)))

    def to_dict(self) -> dict[str, object]:
        """Returns plain values, for JSON."""
        return asdict(self)


def uncalibrated() -> dict[str, object]:
    """Returns the default values of all that calibration fits, for weights that nothing was fitted to."""
    plain = DecodNERConfig()
    return {name: getattr(plain, name) for name in FITTED}


def calibrate(
    pipe: DecodNERPipeline,
    examples: Sequence[Example],
    *,
    context: Context | None = None,
    min_support: int = MIN_SUPPORT,
    **choices: Any,
) -> Calibration:
    """Fits temperature, thresholds and selection to labelled examples; changes nothing by itself.

    The temperature minimises the negative log-likelihood of the candidates' labels, None included. Then, for each way
    of selecting, the best threshold for all labels, and by coordinate ascent on micro F1 one a label; a label's own
    threshold moves only where that raises F1. The better way of selecting wins, "greedy" if they are equal.

    Args:
        pipe: the pipeline.
        examples: a dev set, fully labelled.
        context: as for `score_examples`: calibrate in the mode that will be used.
        min_support: gold spans that a label needs for a threshold of its own.
        **choices: keyword arguments of a call to the pipeline (candidate_labels, overlap). Every candidate is scored,
            also of a model that grows spans, unless `growth` says otherwise.

    Raises:
        ValueError: multi_label, no gold span among the candidates, or what `score_examples` refuses.
    """
    choices = {"growth": False} | choices
    scored = score_examples(pipe, examples, context=context, **choices)
    return fit(scored, Decoder.of(pipe, scored.labels, **choices), min_support)


def fit(scored: ScoredExamples, before: Decoder, min_support: int = MIN_SUPPORT) -> Calibration:
    """Fits to examples that are scored already; `before` is the decoder to start from; see `calibrate`."""
    if before.multi_label:
        raise ValueError("calibration is for one label a span: call it without multi_label.")
    gold = scored.gold_label()
    if not gold.any():
        raise ValueError(
            f"none of the {len(scored.gold)} gold spans is a candidate: there is nothing to calibrate on. "
            f"The coverage is {scored.coverage}."
        )
    temperature = fit_temperature(scored.label_logits, gold)
    frequent = np.bincount(scored.gold.label, minlength=len(scored.labels)) >= min_support  # [L]
    start = replace(before, temperature=temperature)
    fitted = [_Ascent(scored, replace(start, flat_selection=way), GRID).run(frequent) for way in _selections(before)]
    general, decoder, f1 = max(fitted, key=lambda item: item[2])  # the first of equals
    own = {scored.labels[index]: decoder.thresholds[index] for index in np.flatnonzero(frequent).tolist()}
    return Calibration(
        temperature=temperature,
        threshold=general,
        label_thresholds=own,
        flat_selection=decoder.flat_selection,
        nll=negative_log_likelihood(scored.label_logits, gold, temperature),
        nll_before=negative_log_likelihood(scored.label_logits, gold, before.temperature),
        f1=f1,
        f1_before=_f1_of(scored, before),
        num_examples=scored.num_examples,
        num_gold=len(scored.gold),
    )


def fit_jointly(sets: Sequence[tuple[ScoredExamples, Decoder]]) -> Calibration:
    """Fits one temperature and one threshold to several sets, whose labels differ, each counting the same.

    For models that are asked for any labels: no label has a threshold of its own. `f1` and `nll` are means over the
    sets; `sets` are scored examples with the decoder to start from; see `calibrate`.

    Raises:
        ValueError: no set, multi_label, or a set without a gold span among its candidates.
    """
    if not sets:
        raise ValueError("there is no set to calibrate on: give at least one.")
    if any(before.multi_label or not scored.gold_label().any() for scored, before in sets):
        raise ValueError("each set needs gold spans among its candidates and one label a span (no multi_label).")
    golds = [scored.gold_label() for scored, _ in sets]

    def nll(temperatures: Sequence[float]) -> float:
        parts = zip(sets, golds, temperatures, strict=True)
        return float(
            np.mean([negative_log_likelihood(scored.label_logits, gold, t) for (scored, _), gold, t in parts])
        )

    temperature = _least(lambda value: nll([value] * len(sets)))
    found = []
    for way in _selections(sets[0][1]):
        ascents = [
            _Ascent(scored, replace(before, temperature=temperature, flat_selection=way), GRID)
            for scored, before in sets
        ]
        found.append((*_general(ascents), way))
    threshold, f1, way = max(found, key=lambda item: item[1])  # the first of equals
    return Calibration(
        temperature=temperature,
        threshold=threshold,
        label_thresholds={},
        flat_selection=way,
        nll=nll([temperature] * len(sets)),
        nll_before=nll([before.temperature for _, before in sets]),
        f1=f1,
        f1_before=float(np.mean([_f1_of(scored, before) for scored, before in sets])),
        num_examples=sum(scored.num_examples for scored, _ in sets),
        num_gold=sum(len(scored.gold) for scored, _ in sets),
    )


def negative_log_likelihood(label_logits: FloatingArray, gold: IntArray, temperature: float) -> float:
    """Returns the mean of -log softmax(label_logits [S, L + 1] / temperature) at the columns `gold` [S], in nats."""
    logits = np.asarray(label_logits, np.float64) / temperature
    logits = logits - logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    return float((log_sums - logits[np.arange(len(gold)), gold]).mean())


def fit_temperature(label_logits: FloatingArray, gold: IntArray) -> float:
    """Returns the temperature with the smallest negative log-likelihood, which has one minimum.

    Where every candidate's best label is right, or no temperature helps, the result is the end of the range searched.
    """
    return _least(lambda temperature: negative_log_likelihood(label_logits, gold, temperature))


def _least(nll: Callable[[float], float], tolerance: float = 1e-4) -> float:
    """Returns the temperature with the smallest `nll`, by golden-section search on the temperature's logarithm."""
    low, high = -np.log(LARGEST_TEMPERATURE), np.log(LARGEST_TEMPERATURE)
    while high - low > tolerance:
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, right) if nll(float(np.exp(left))) <= nll(float(np.exp(right))) else (left, high)
    return float(np.exp((low + high) / 2.0))


def reliability(scored: ScoredExamples, decoder: Decoder) -> dict[str, object]:
    """Compares scores with accuracy: how often a candidate's best label is right, in ten bins of equal width.

    Returns:
        `bins`, each with `low, high, count, score, accuracy` (the last two None where it is empty), and
        `expected_calibration_error`, the mean distance of score and accuracy over the candidates above the first bin,
        in which nearly all candidates lie (None where there are no others).
    """
    scores = decoder.scores(scored)[:, 1:]
    best = scores.argmax(axis=1)
    value = scores[np.arange(len(best)), best]
    right = best + 1 == scored.gold_label()
    bins = np.minimum((value * BINS).astype(np.int64), BINS - 1)
    counts, values, hits = (np.bincount(bins, weights, BINS) for weights in (None, value, right))
    gaps = np.abs(values - hits)[1:].sum()
    rows = [
        {
            "low": index / BINS,
            "high": (index + 1) / BINS,
            "count": int(counts[index]),
            "score": float(values[index] / counts[index]) if counts[index] else None,
            "accuracy": float(hits[index] / counts[index]) if counts[index] else None,
        }
        for index in range(BINS)
    ]
    above = counts[1:].sum()
    return {"bins": rows, "expected_calibration_error": float(gaps / above) if above else None}


class _Ascent:
    """Computes micro F1 for many thresholds on one set of scores, and searches by coordinate ascent."""

    def __init__(self, scored: ScoredExamples, decoder: Decoder, grid: Sequence[float]) -> None:
        """Keeps only the candidates that some threshold of the grid lets through: the others never matter."""
        scores = decoder.scores(scored)
        kept = scores[:, 1:].max(axis=1, initial=0.0) >= min(grid)
        self.scored, self.scores, self.decoder, self.grid = scored.select(kept), scores[kept], decoder, grid
        self.is_gold = self.scored.is_gold()
        self.known: dict[tuple[float, ...], float] = {}

    def f1(self, thresholds: Sequence[float]) -> float:
        key = tuple(thresholds)
        if key not in self.known:
            span, label = replace(self.decoder, thresholds=key).select(self.scored, self.scores)
            correct = int(self.is_gold[span, label].sum())
            self.known[key] = 2.0 * correct / max(1, len(span) + len(self.scored.gold))
        return self.known[key]

    def run(self, own: BoolArray) -> tuple[float, Decoder, float]:
        """Returns the best threshold for all labels, the decoder with those of labels `own` [L] fitted, and its F1."""
        general, _ = _general([self])
        thresholds: list[float] = [general] * len(own)
        before: list[float] = []
        while thresholds != before:  # ends: F1, then closeness to the general threshold, never get worse
            before = thresholds
            for label in np.flatnonzero(own).tolist():
                thresholds = self._moved(thresholds, label, general)
        return general, replace(self.decoder, thresholds=tuple(thresholds)), self.f1(thresholds)

    def _moved(self, thresholds: list[float], label: int, general: float) -> list[float]:
        """Returns the thresholds with the best one for `label`; of equals the one closest to `general`."""
        tries = ([*thresholds[:label], value, *thresholds[label + 1 :]] for value in self.grid)
        return max(tries, key=lambda tried: (self.f1(tried), -abs(tried[label] - general)))


def _selections(before: Decoder) -> tuple[str, ...]:
    """Returns the ways of selecting that are tried; only flat entities have several."""
    return FLAT_SELECTIONS if before.overlap == "flat" else (before.flat_selection,)


def _f1_of(scored: ScoredExamples, decoder: Decoder) -> float:
    return _Ascent(scored, decoder, (min(decoder.thresholds),)).f1(decoder.thresholds)


def _general(ascents: Sequence[_Ascent]) -> tuple[float, float]:
    """Returns the one threshold for all labels with the best mean F1, of equals the closest to 0.5, and that F1."""
    means = {
        value: float(np.mean([ascent.f1([value] * len(ascent.scored.labels)) for ascent in ascents]))
        for value in ascents[0].grid
    }
    best = max(means, key=lambda value: (means[value], -abs(value - 0.5)))
    return best, means[best]
