"""Selects entities among overlapping candidate spans, by score.

In: per candidate span its characters and its labels' scores. Out: indices of the selected spans and labels.
Thresholds come first: a span below its label's threshold never competes; what is left is then selected.
One call serves many documents; spans of different documents never compete. The exact flat selection is weighted
interval scheduling (Kleinberg and Tardos, "Algorithm Design", section 6.1).
Knows nothing of logits, label names, models or tokenizers.
"""

import numpy as np
from numpy.typing import ArrayLike

from .arrays import FloatArray, IntArray
from .configuration import FLAT_SELECTIONS, OVERLAPS

# Scores and thresholds of exactly 0 or 1 have no finite logit: weights treat them as this far from it.
LOGIT_MARGIN = 1e-12
# Weights are rounded to multiples of 1 / WEIGHT_UNITS and summed as integers, so that equal sums are exactly equal
# whatever the order of addition, and ties are ties.
WEIGHT_UNITS = float(2**30)
MOST_CHARACTERS = 2**24  # that are kept track of one by one


def select_spans(
    start: ArrayLike,
    end: ArrayLike,
    scores: ArrayLike,
    thresholds: ArrayLike,
    overlap: str = "flat",
    flat_selection: str = "greedy",
    multi_label: bool = False,
    cu_spans: ArrayLike | None = None,
) -> tuple[IntArray, IntArray, FloatArray]:
    """Selects entities among candidate spans.

    A label is eligible where its score reaches its own threshold, even if None scores higher; a span's label is the
    eligible one with the best score. Then, by `overlap`:
    "flat": no two entities share a character; "greedy" takes the best score first, "exact" the set with the largest
    sum of logit(score) - logit(threshold). "nested": best score first, no two cross. "all": every span that is left.
    The same span comes twice only with several labels under `multi_label`; one given twice counts once.
    Ties: earlier start, then longer span, then label order. "exact" takes, among equal sums, the set that has the
    first span in that order.

    Args:
        start: int64 [S], first character of each span in its document.
        end: int64 [S], one past the last character.
        scores: [S, L + 1] as from `label_scores`; index 0 is the None label and is not read.
        thresholds: [L], from 0 to 1.
        overlap: "flat", "nested" or "all".
        flat_selection: "greedy" or "exact"; read only where overlap is "flat".
        multi_label: report every eligible label of a span; only where overlap is "all".
        cu_spans: int64 [B + 1], where each document's spans start; one document if None.

    Returns:
        `(span_index [K], label_index [K], score [K])`, label indices counting from 0 without None; sorted by
        document, start, longer span first, label order.

    Raises:
        ValueError: shapes that do not fit, empty spans, scores or thresholds outside [0, 1], or an unknown option.
    """
    _check_options(overlap, flat_selection, multi_label)
    starts, ends, table, limits = _checked_candidates(start, end, scores, thresholds)
    span, label, score = _eligible(table, limits, multi_label)
    if not len(span):
        return span, label, score
    first, last = starts[span], ends[span]
    if cu_spans is not None:  # lay the documents side by side on one axis: their spans cannot overlap there
        bounds = _checked_cu_spans(cu_spans, len(starts))
        document, lengths = documents_of(span, bounds), np.zeros(len(bounds) - 1, np.int64)
        np.maximum.at(lengths, document, last)
        shift = (np.cumsum(lengths) - lengths)[document]
        first, last = first + shift, last + shift
    if last.max() > MOST_CHARACTERS:
        first, last = _ranks(first, last)
    order = _reading_order(first, last, label, score, multi_label)
    span, label, score, first, last = span[order], label[order], score[order], first[order], last[order]
    if overlap == "all":
        return span, label, score
    if overlap == "nested":
        chosen = _select_nested(first, last, score)
    elif flat_selection == "exact":
        chosen = _select_exact(first, last, _weights(score, limits[label]))
    else:
        chosen = _select_greedy(first, last, score)
    return span[chosen], label[chosen], score[chosen]


def documents_of(span: IntArray, cu_spans: IntArray) -> IntArray:
    """Returns the document [K] of each span index [K]."""
    return np.searchsorted(cu_spans, span, side="right") - 1


def _eligible(table: FloatArray, limits: FloatArray, multi_label: bool) -> tuple[IntArray, IntArray, FloatArray]:
    """Span, label and score [K] of what reaches its label's threshold: the best label of a span, or all of them."""
    reached = table[:, 1:] >= limits  # [S, L]
    if multi_label:
        span, label = np.nonzero(reached)
    else:
        span = np.flatnonzero(reached.any(1))
        label = np.where(reached[span], table[span, 1:], -1.0).argmax(1)
    return span, label, table[span, label + 1]


def _reading_order(first: IntArray, last: IntArray, label: IntArray, score: FloatArray, multi_label: bool) -> IntArray:
    """Indices in order of start, longer span first, label; of a span that was given twice only the better one."""
    length = last - first
    place = first * (length.max() + 1) - length  # one number for start, and then the longer span first
    order = np.argsort(place, kind="stable")
    if (place[order[1:]] != place[order[:-1]]).all():
        return np.asarray(order)
    ranking = (-score, label) if multi_label else (label, -score)
    order = np.lexsort((*ranking, place))
    keys = np.stack([place, label] if multi_label else [place])[:, order]
    return np.asarray(order[np.append(True, (keys[:, 1:] != keys[:, :-1]).any(0))])


def _weights(score: FloatArray, threshold: FloatArray) -> IntArray:
    """Logit(score) - logit(threshold) in units of 1 / WEIGHT_UNITS; never negative where score >= threshold."""
    p, t = (np.clip(values, LOGIT_MARGIN, 1.0 - LOGIT_MARGIN) for values in (score, threshold))
    odds = np.log(p) - np.log1p(-p) - np.log(t) + np.log1p(-t)
    return np.asarray(np.rint(odds * WEIGHT_UNITS).astype(np.int64))


def _select_exact(start: IntArray, end: IntArray, weight: IntArray) -> IntArray:
    """Weighted interval scheduling over spans in reading order; indices of the chosen, ascending."""
    following = np.searchsorted(start, end).tolist()  # the first span that starts where this one has ended
    weights = weight.tolist()
    best = [0] * (len(weights) + 1)  # best sum among the spans from here on
    for index in range(len(weights) - 1, -1, -1):
        best[index] = max(weights[index] + best[following[index]], best[index + 1])
    chosen, index = [], 0
    while index < len(weights):
        if weights[index] + best[following[index]] >= best[index + 1]:
            chosen.append(index)
            index = following[index]
        else:
            index += 1
    return np.array(chosen, np.int64)


def _select_greedy(first: IntArray, last: IntArray, score: FloatArray) -> IntArray:
    """Takes spans best score first unless they overlap one taken before; indices of the chosen, ascending.

    Spans come in reading order, which the stable sort keeps among equal scores.
    """
    order = np.argsort(-score, kind="stable")
    taken = bytearray(int(last.max()))  # per character

    def take(spans: IntArray) -> list[int]:
        chosen = []
        for index, start, end in zip(spans.tolist(), first[spans].tolist(), last[spans].tolist(), strict=True):
            if taken.find(1, start, end) < 0:
                taken[start:end] = b"\x01" * (end - start)
                chosen.append(index)
        return chosen

    best, others = np.split(order, [len(order) // 8])
    chosen = take(best)
    before = np.append(0, np.cumsum(np.frombuffer(taken, np.uint8), dtype=np.int64))  # characters taken by the best
    chosen += take(others[before[first[others]] == before[last[others]]])
    return np.array(sorted(chosen), np.int64)


def _select_nested(first: IntArray, last: IntArray, score: FloatArray) -> IntArray:
    """Like `_select_greedy`, unless they cross one taken before.

    Spans are compared in ranks of their boundaries, of which there are as many as distinct starts and ends.
    """
    first, last = _ranks(first, last)
    order = np.argsort(-score, kind="stable")
    points = int(last.max()) + 1
    furthest_end = [0] * points  # of the taken spans that start at a boundary
    earliest_start = [points] * points  # of those that end there
    chosen = []
    for index, start, end in zip(order.tolist(), first[order].tolist(), last[order].tolist(), strict=True):
        inside = slice(start + 1, end)
        if max(furthest_end[inside], default=0) <= end and min(earliest_start[inside], default=end) >= start:
            furthest_end[start] = max(furthest_end[start], end)
            earliest_start[end] = min(earliest_start[end], start)
            chosen.append(index)
    return np.array(sorted(chosen), np.int64)


def _ranks(first: IntArray, last: IntArray) -> tuple[IntArray, IntArray]:
    """The boundaries counted in place of the characters between them."""
    _, ranks = np.unique(np.concatenate([first, last]), return_inverse=True)
    return ranks[: len(first)], ranks[len(first) :]


def _check_options(overlap: str, flat_selection: str, multi_label: bool) -> None:
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap must be one of {OVERLAPS}, not {overlap!r}.")
    if flat_selection not in FLAT_SELECTIONS:
        raise ValueError(f"flat_selection must be one of {FLAT_SELECTIONS}, not {flat_selection!r}.")
    if multi_label and overlap != "all":
        raise ValueError(f"multi_label needs overlap='all', not {overlap!r}: elsewhere a span has one label.")


def _checked_candidates(
    start: ArrayLike, end: ArrayLike, scores: ArrayLike, thresholds: ArrayLike
) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
    starts, ends = np.asarray(start, np.int64), np.asarray(end, np.int64)
    table, limits = np.asarray(scores, np.float64), np.asarray(thresholds, np.float64)
    spans, columns = starts.size, limits.size + 1
    if starts.shape != (spans,) or ends.shape != (spans,) or limits.ndim != 1 or table.shape != (spans, columns):
        raise ValueError(
            "start and end must be [S], thresholds [L] and scores [S, L + 1], not "
            f"{list(starts.shape)}, {list(ends.shape)}, {list(limits.shape)} and {list(table.shape)}."
        )
    for name, values in (("scores", table), ("thresholds", limits)):
        if values.size and not (values.min() >= 0.0 and values.max() <= 1.0):  # a NaN fails both
            raise ValueError(
                f"{name} must be from 0 to 1, but {values[~((values >= 0) & (values <= 1))][0]} was given."
            )
    if spans and (int(starts.min()) < 0 or not bool((ends > starts).all())):
        at = int(np.flatnonzero((starts < 0) | (ends <= starts))[0])
        raise ValueError(f"span {at} is [{starts[at]}, {ends[at]}): a span needs 0 <= start < end.")
    return starts, ends, table, limits


def _checked_cu_spans(cu_spans: ArrayLike, spans: int) -> IntArray:
    bounds = np.asarray(cu_spans, np.int64)
    if bounds.ndim != 1 or not bounds.size or bounds[0] != 0 or bounds[-1] != spans or (np.diff(bounds) < 0).any():
        raise ValueError(f"cu_spans must ascend from 0 to the number of spans, {spans}, not {bounds.tolist()[:8]}.")
    return bounds
