"""Compares predicted spans with gold spans: precision, recall and F1 with a bootstrap interval, confusion counts.

In: labelled spans of many examples, as `SpanTable`. Out: plain dicts and arrays.
A prediction is correct if start, end and label are all equal. Sets count: a span given twice counts once.
Knows nothing of models, scores or files.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..core.arrays import BoolArray, FloatArray, IntArray

CONFIDENCE = 0.95
RESAMPLES_AT_ONCE = 100
LARGEST_NUMBER = 2**62


@dataclass(frozen=True)
class SpanTable:
    """The distinct labelled spans of B examples, sorted by example, start, end and label.

    Attributes:
        example: int64 [K], from 0 to B - 1.
        start: int64 [K], in characters or words, as long as all tables agree.
        end: int64 [K], half-open.
        label: int64 [K], index of the label.
        num_examples: B.
    """

    example: IntArray
    start: IntArray
    end: IntArray
    label: IntArray
    num_examples: int

    @classmethod
    def of(cls, example: IntArray, start: IntArray, end: IntArray, label: IntArray, num_examples: int) -> "SpanTable":
        """Sorts the spans and drops duplicates."""
        rows = np.unique(np.stack([example, start, end, label], axis=1).reshape(-1, 4), axis=0)
        return cls(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3], num_examples)

    @classmethod
    def from_lists(cls, entities: Sequence[Iterable[tuple[int, int, str]]], labels: Sequence[str]) -> "SpanTable":
        """Makes a table of each example's (start, end, label).

        Raises:
            ValueError: a label that is not among `labels`.
        """
        index = {label: number for number, label in enumerate(labels)}
        rows = [(number, *entity) for number, example in enumerate(entities) for entity in example]
        unknown = sorted({str(label) for *_, label in rows} - set(index))
        if unknown:
            raise ValueError(f"the entities have labels {unknown}, which are not among {list(labels)}.")
        numbers = np.array([(number, start, end, index[label]) for number, start, end, label in rows], np.int64)
        table = numbers.reshape(-1, 4)
        return cls.of(table[:, 0], table[:, 1], table[:, 2], table[:, 3], len(entities))

    @property
    def rows(self) -> IntArray:
        """[K, 4]: example, start, end, label."""
        return np.stack([self.example, self.start, self.end, self.label], axis=1)

    @property
    def is_flat(self) -> bool:
        """Whether no two spans of an example share a character."""
        same = self.example[1:] == self.example[:-1]
        return not bool((same & (self.start[1:] < self.end[:-1])).any())

    def __len__(self) -> int:
        """Number of spans (K)."""
        return len(self.example)


def row_numbers(rows: IntArray) -> IntArray:
    """Returns int64 [K]: a number for each row [K, C] of integers from 0, the same for equal rows and no others."""
    numbers = np.zeros(len(rows), np.int64)
    for column in rows.T:
        size = int(column.max(initial=0)) + 1
        if (int(numbers.max(initial=0)) + 1) * size >= LARGEST_NUMBER:
            numbers, column = (np.unique(values, return_inverse=True)[1].reshape(-1) for values in (numbers, column))
            size = len(rows)
        numbers = numbers * size + column
    return numbers


def found(rows: IntArray, among: IntArray) -> BoolArray:
    """Returns bool [K]: which of the rows [K, C] of integers from 0 occur in `among` [M, C]."""
    numbers = row_numbers(np.concatenate([rows, among]))
    return np.isin(numbers[: len(rows)], numbers[len(rows) :])


def precision_recall_f1(correct: ArrayLike, predicted: ArrayLike, gold: ArrayLike) -> FloatArray:
    """Returns float64 [..., 3] of counts that broadcast; a quotient without a denominator is 0."""
    hits, proposed, wanted = (np.asarray(count, np.float64) for count in (correct, predicted, gold))
    parts = ((hits, proposed), (hits, wanted), (2.0 * hits, proposed + wanted))
    return np.stack([top / np.maximum(bottom, 1.0) for top, bottom in parts], axis=-1)


def span_scores(
    gold: SpanTable,
    predicted: SpanTable,
    labels: Sequence[str],
    *,
    units: IntArray | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> dict[str, object]:
    """Scores predictions against gold spans.

    Args:
        gold: the gold spans.
        predicted: the predicted ones, of the same examples.
        labels: names of the label indices.
        units: int64 [B], what the bootstrap draws, each example's document for instance; by default each example.
        resamples: number of bootstrap resamples; 0 for no interval.
        seed: of the bootstrap.

    Returns:
        Micro `precision, recall, f1` and the counts `correct, predicted, gold`; `macro_precision, macro_recall,
        macro_f1`, plain means over the labels that occur; `per_label` with the same figures; with resamples
        `f1_interval`, the 95 % percentile interval of micro F1.

    Raises:
        ValueError: tables of different numbers of examples.
    """
    if gold.num_examples != predicted.num_examples:
        raise ValueError(
            f"{gold.num_examples} references but {predicted.num_examples} predictions were given: one each is needed."
        )
    hits = found(predicted.rows, gold.rows)
    counts = np.stack(
        [np.bincount(column, minlength=len(labels)) for column in (predicted.label[hits], predicted.label, gold.label)]
    )  # [3, L]
    figures = precision_recall_f1(*counts)  # [L, 3]
    occurs = counts.any(axis=0)
    macro = figures[occurs].mean(axis=0) if occurs.any() else np.zeros(3)
    names = ("precision", "recall", "f1")
    result = dict(zip(names, precision_recall_f1(*counts.sum(1)).tolist(), strict=True))
    result |= dict(zip(("correct", "predicted", "gold"), counts.sum(1).tolist(), strict=True))
    result |= {f"macro_{name}": value for name, value in zip(names, macro.tolist(), strict=True)}
    result["per_label"] = {
        labels[index]: dict(zip(names, figures[index].tolist(), strict=True))
        | dict(zip(("correct", "predicted", "gold"), counts[:, index].tolist(), strict=True))
        for index in np.flatnonzero(occurs).tolist()
    }
    if resamples:
        examples = (predicted.example[hits], predicted.example, gold.example)
        tallies = np.stack([np.bincount(column, minlength=gold.num_examples) for column in examples])
        result["f1_interval"] = bootstrap_interval(tallies, units, resamples, seed)
    return result


def bootstrap_interval(tallies: IntArray, units: IntArray | None, resamples: int, seed: int) -> list[float]:
    """Returns the percentile interval of micro F1, drawing examples (or whole units of them) with replacement.

    Args:
        tallies: int64 [3, B], correct, predicted and gold spans of each example.
        units: int64 [B], the unit that each example belongs to, from 0; each example is one if None.
        resamples: how many resamples to draw.
        seed: of the generator.

    Returns:
        The lower and the upper bound.
    """
    if units is not None:
        tallies = np.stack([np.bincount(units, weights=row).astype(np.int64) for row in tallies])
    generator, size = np.random.default_rng(seed), tallies.shape[1]
    values = []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        count = min(RESAMPLES_AT_ONCE, resamples - start)
        drawn = generator.multinomial(size, np.full(size, 1.0 / size), size=count)  # [count, units]
        values.append(precision_recall_f1(*(drawn @ tallies.T).T)[:, 2])
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(np.concatenate(values), [tail, 1.0 - tail]).tolist()
    return [low, high]


def confusion(gold: SpanTable, predicted: SpanTable, num_labels: int) -> IntArray:
    """Counts [L + 1, L + 1]: gold label down, predicted label across, the last ones "no such span".

    Only spans with equal bounds are confused with one another; a span with wrong bounds is missed and spurious.
    """
    table = np.zeros((num_labels + 1, num_labels + 1), np.int64)
    hits = found(predicted.rows, gold.rows)
    np.add.at(table, (predicted.label[hits], predicted.label[hits]), 1)
    missed, spurious = gold.rows[~found(gold.rows, predicted.rows)], predicted.rows[~hits]
    keys = [np.column_stack([rows[:, :3], _rank_in_span(rows)]) for rows in (missed, spurious)]
    paired = found(keys[0], keys[1]), found(keys[1], keys[0])  # in the same order: both are sorted
    np.add.at(table, (missed[paired[0], 3], spurious[paired[1], 3]), 1)
    np.add.at(table, (missed[~paired[0], 3], num_labels), 1)
    np.add.at(table, (num_labels, spurious[~paired[1], 3]), 1)
    return table


def _rank_in_span(rows: IntArray) -> IntArray:
    """Returns int64 [K]: each row's number among the sorted rows [K, 4] of the same span."""
    first = np.flatnonzero(np.append(True, (rows[1:, :3] != rows[:-1, :3]).any(axis=1))[: len(rows)])
    return np.arange(len(rows)) - np.repeat(first, np.diff(np.append(first, len(rows))))
