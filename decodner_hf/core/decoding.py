"""Turns label logits into scores, and scores of overlapping candidate spans into entities.

In: per candidate span its characters, its words and its label logits, index 0 the None label. Out: `Entity` objects.
Many documents are decoded in one call.
Knows nothing of models or tokenizers, and leaves the choice among overlapping spans to `select_spans`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .arrays import FloatArray, IntArray
from .selection import documents_of, select_spans


@dataclass(frozen=True)
class Entity:
    """A selected span.

    Attributes:
        label: its entity type.
        score: the label's score, from 0 to 1.
        start: first character in the document's text.
        end: one past its last character.
        start_word: first word.
        end_word: one past its last word.
        scores: every label's score (the None label left out), where they were asked for.
    """

    label: str
    score: float
    start: int
    end: int
    start_word: int
    end_word: int
    scores: dict[str, float] | None = None


def label_scores(label_logits: ArrayLike, temperature: float = 1.0, multi_label: bool = False) -> FloatArray:
    """Returns the scores [S, L + 1] of each span's labels, float64; index 0 is the None label.

    Args:
        label_logits: [S, L + 1], any float type.
        temperature: the logits are divided by it, > 0.
        multi_label: instead of a softmax over all symbols, score each label by the sigmoid of its log-odds against
            None; the None label's score is then the sigmoid of its log-odds against the best label.

    Raises:
        ValueError: another shape, fewer than two columns, logits that are not finite, or temperature <= 0.
    """
    logits = _checked_logits(label_logits, "label_logits")
    if not temperature > 0.0 or temperature == float("inf"):
        raise ValueError(f"temperature must be a finite number greater than 0, not {temperature!r}.")
    if multi_label:
        odds = np.concatenate([logits[:, :1] - logits[:, 1:].max(1, keepdims=True), logits[:, 1:] - logits[:, :1]], 1)
        odds /= temperature
        small = np.exp(-np.abs(odds))  # at most 1: never overflows
        sigmoid: FloatArray = np.where(odds >= 0.0, 1.0, small) / (1.0 + small)
        return sigmoid
    scores: FloatArray = logits - np.ascontiguousarray(logits.T).max(0)[:, None]  # short rows take numpy long
    scores /= temperature
    np.exp(scores, out=scores)
    scores /= scores.sum(1, keepdims=True)
    return scores


def merge_shards(shards: Sequence[ArrayLike]) -> FloatArray:
    """Joins label logits of one label set that was scored in several prompts.

    Each label counts by its log-odds against the None label of its own prompt; None itself is 0.

    Args:
        shards: per prompt the label logits [S, L_k + 1] of the same S spans, index 0 the None label.

    Returns:
        Label logits [S, sum of L_k + 1], float64, the labels in the shards' order.

    Raises:
        ValueError: no shard, shards of different S, or what `label_scores` refuses.
    """
    logits = [_checked_logits(shard, f"shard {index}") for index, shard in enumerate(shards)]
    if not logits:
        raise ValueError("no shard was given: pass the label logits of at least one prompt.")
    counts = [len(shard) for shard in logits]
    if len(set(counts)) > 1:
        raise ValueError(f"the shards have {counts} spans: every prompt must score the same spans.")
    return np.concatenate([np.zeros((counts[0], 1)), *(shard[:, 1:] - shard[:, :1] for shard in logits)], axis=1)


def decode_entities(
    start: IntArray,
    end: IntArray,
    start_word: IntArray,
    end_word: IntArray,
    label_logits: ArrayLike,
    labels: Sequence[str],
    thresholds: ArrayLike,
    *,
    temperature: float = 1.0,
    overlap: str = "flat",
    flat_selection: str = "greedy",
    multi_label: bool = False,
    cu_spans: ArrayLike | None = None,
    with_scores: bool = False,
) -> list[list[Entity]]:
    """Decodes B documents: label logits -> scores -> selected entities, in reading order.

    Args:
        start: int64 [S], first character of each span in its document.
        end: int64 [S], one past the last character.
        start_word: int64 [S], first word.
        end_word: int64 [S], one past the last word.
        label_logits: [S, L + 1], index 0 the None label.
        labels: L names.
        thresholds: [L], from 0 to 1.
        temperature: see `label_scores`.
        overlap: see `select_spans`.
        flat_selection: see `select_spans`.
        multi_label: see `select_spans`.
        cu_spans: int64 [B + 1], where each document's spans start; one document if None.
        with_scores: fill `Entity.scores`.

    Returns:
        Per document its entities.

    Raises:
        ValueError: what `label_scores` and `select_spans` refuse, or word bounds that are not [S].
    """
    scores = label_scores(label_logits, temperature, multi_label)
    if len(labels) != scores.shape[1] - 1:
        raise ValueError(f"{len(labels)} labels but label_logits has {scores.shape[1]} columns: None and each label.")
    if len(start_word) != len(scores) or len(end_word) != len(scores):
        raise ValueError(f"{len(start_word)} and {len(end_word)} word bounds for {len(scores)} spans.")
    span, label, score = select_spans(
        start, end, scores, thresholds, overlap, flat_selection, multi_label, cu_spans=cu_spans
    )
    bounds = np.array([0, len(scores)]) if cu_spans is None else np.asarray(cu_spans, np.int64)
    documents: list[list[Entity]] = [[] for _ in range(len(bounds) - 1)]
    characters, words = (start[span], end[span]), (start_word[span], end_word[span])
    columns = (documents_of(span, bounds), span, label, score, *characters, *words)
    for document, row, index, value, first, last, first_word, last_word in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        every = dict(zip(labels, scores[row, 1:].tolist(), strict=True)) if with_scores else None
        documents[document].append(Entity(labels[index], value, first, last, first_word, last_word, every))
    return documents


def _checked_logits(label_logits: ArrayLike, name: str) -> FloatArray:
    logits = np.asarray(label_logits, np.float64)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"{name} must be [spans, labels + 1] with the None label first, not {list(logits.shape)}.")
    if not np.isfinite(logits).all():
        span, column = np.argwhere(~np.isfinite(logits))[0].tolist()
        raise ValueError(
            f"{name} holds {logits[span, column]} at span {span}, column {column}: logits must be finite."
        )
    return logits
