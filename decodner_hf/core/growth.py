"""Grows spans: a longer span is scored only where each of its shorter word prefixes goes on.

In: documents' chains and candidate spans; after each round, which of the spans that it scored go on. Out: per round
the nodes to run, `GrownRows`, numbered as in the forest of all candidate spans, which is never built; at the end,
which spans exist.
Node i sees node j iff `number[j] <= number[i] <= subtree_end[j]`, for nodes of all rounds.
Knows nothing of tokenizers, labels, models or attention.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .arrays import BoolArray, FloatArray, Int32Array, IntArray, bounds_of, packed_runs, ramp_of
from .forest import PathTable, SpanPaths

ROUND_WIDTHS = (1, 2, 4, 8)  # words that the spans of each round have at most; a last round takes all wider ones


def goes_on_probability(odds: FloatArray) -> FloatArray:
    """Returns the probability that spans go on, from the log-odds of the answers "goes on" and "ends"."""
    probability: FloatArray = 1.0 / (1.0 + np.exp(-odds))
    return probability


def existing_spans(place: IntArray, width: IntArray, goes_on: BoolArray) -> BoolArray:
    """Which of S spans exist: those of which every shorter word prefix goes on.

    A prefix that is no candidate goes on; so does one of which any candidate does.

    Args:
        place: int64 [S], a number for the word at which each span starts.
        width: int64 [S], its number of words.
        goes_on: bool [S], whether a longer entity may begin with it.

    Returns:
        bool [S].
    """
    if not len(place):
        return np.zeros(0, bool)
    prefixes, prefix = np.unique(np.stack([place, width]), axis=1, return_inverse=True)
    ends = np.ones(prefixes.shape[1], bool)
    ends[prefix.reshape(-1)[goes_on]] = False
    last_width = np.full(int(place.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(last_width, prefixes[0, ends], prefixes[1, ends])
    exists: BoolArray = width <= last_width[place]
    return exists


@dataclass(frozen=True)
class GrownRows:
    """The N nodes that a round adds, and the K spans that it scores.

    Attributes:
        token_ids: int64 [N].
        position_ids: int64 [N], prefix length + depth.
        numbers: int32 [N], each node's place in the pre-order of the forest of all candidates; ascending.
        subtree_end: int32 [N], the largest number that a descendant can have, inclusive.
        spans: int64 [K], which of the documents' spans are scored; counted over all documents.
        span_nodes: int64 [K], the node (0 .. N - 1) at which each is scored.
        repeats: int64 [2, M]: spans without tokens of their own, and the earlier span whose logits are theirs too.
    """

    token_ids: IntArray
    position_ids: IntArray
    numbers: Int32Array
    subtree_end: Int32Array
    spans: IntArray
    span_nodes: IntArray
    repeats: IntArray


class GrowingForest:
    """The forest of B documents, round by round.

    Every path (a chain of tokens that spans of one place share) gets as many numbers as its nodes can ever need, in
    the first round in which it has a node; below the node that it has reached, the rest is kept for later rounds.
    So numbers are known without the nodes that are never scored.

    Attributes:
        next_number: the first number after those of these documents, for another group in the same pass.
    """

    def __init__(
        self,
        chains: Sequence[IntArray],
        paths: Sequence[SpanPaths],
        places: Sequence[IntArray],
        widths: Sequence[IntArray],
        *,
        first_position: int = 0,
        first_number: int = 0,
        cue_token_ids: Sequence[int] = (),
    ) -> None:
        """Takes the documents; nothing is numbered yet.

        Args:
            chains: per document its token ids.
            paths: per document its S spans.
            places: per document int64 [S], the word at which each span starts.
            widths: per document int64 [S], each span's number of words; 1 for spans that are scored in any case.
            first_position: length of the shared prefix.
            first_number: number of the first node.
            cue_token_ids: tokens that follow every span; it is scored at the last of them.
        """
        self._cue = np.asarray(cue_token_ids, np.int64)
        self._chains = [np.asarray(chain, np.int64) for chain in chains]
        self._chain_lengths = np.array([len(chain) for chain in chains], np.int64)
        path_counts = np.array([len(document.cu_seqlens) - 1 for document in paths], np.int64)
        span_counts = np.array([len(document.span_path) for document in paths], np.int64)
        token_counts = np.array([len(document.token_ids) for document in paths], np.int64)
        self._tokens = _joined([document.token_ids for document in paths])
        starts = [document.cu_seqlens[:-1] for document in paths]
        self._path_start = _joined(starts) + np.repeat(bounds_of(token_counts)[:-1], path_counts)
        path_lengths = _joined([np.diff(document.cu_seqlens) for document in paths])
        self._path_document = np.repeat(np.arange(len(paths)), path_counts)
        self._span_path = _joined([d.span_path for d in paths]) + np.repeat(bounds_of(path_counts)[:-1], span_counts)
        self._span_length = _joined([document.span_length for document in paths])
        words = np.array([int(place.max(initial=-1)) + 1 for place in places], np.int64)
        self._place = _joined(places) + np.repeat(bounds_of(words)[:-1], span_counts)
        self._width = _joined(widths)
        self._is_open = np.ones(int(words.sum()), bool)  # [places]: whether every prefix scored so far goes on
        # Numbers that each path can still need: its tokens and, for each of its spans, a copy of them with the cue.
        self._room = path_lengths.copy()
        if len(self._cue):
            np.add.at(self._room, self._span_path, self._span_length + len(self._cue))
        self._reached = np.zeros_like(path_lengths)  # [paths]: tokens that have nodes
        self._reached_by = np.zeros_like(path_lengths)  # [paths]: the span that ends there
        self._below = np.full_like(path_lengths, -1)  # [paths]: the first number free below the node there
        needed = np.bincount(self._path_document, weights=self._room, minlength=len(paths)).astype(np.int64)
        bounds = first_number + bounds_of(self._chain_lengths + needed)
        self._document_start, self._document_end = bounds[:-1], bounds[1:]
        self._next_root = self._document_start + self._chain_lengths  # [B]: the first number that no path has
        self._first_position = first_position
        self._rounds = _round_bounds(int(self._width.max(initial=1)))
        self._last_round: IntArray = np.empty(0, np.int64)  # spans
        self.next_number = int(bounds[-1])

    @property
    def num_spans(self) -> int:
        """Number of candidate spans of all documents (S)."""
        return len(self._span_path)

    def first_round(self, max_nodes: int | None = None) -> Iterator[GrownRows]:
        """Yields the documents' chains and their shortest spans; see `next_round` for `max_nodes`."""
        lengths = self._chain_lengths
        depth = ramp_of(lengths)
        numbers = np.repeat(self._document_start, lengths) + depth
        ends = np.repeat(self._document_end - 1, lengths)
        room = None if max_nodes is None else max(max_nodes - len(depth), 1)
        for part, spans in enumerate(self._parts(self._choose(), room)):
            grown = self._add(spans)
            if part:
                yield grown
                continue
            yield GrownRows(
                token_ids=np.append(_joined(self._chains), grown.token_ids),
                position_ids=np.append(self._first_position + depth, grown.position_ids),
                numbers=np.append(numbers.astype(np.int32), grown.numbers),
                subtree_end=np.append(ends.astype(np.int32), grown.subtree_end),
                spans=grown.spans,
                span_nodes=grown.span_nodes + len(depth),
                repeats=grown.repeats,
            )

    def next_round(self, goes_on: BoolArray, max_nodes: int | None = None) -> Iterator[GrownRows]:
        """Yields the rows of the next round; none where no span is left that could exist.

        Args:
            goes_on: bool [S]; those of the last round's spans count.
            max_nodes: most nodes of one pass; a round that may have more comes in parts. The spans of one place stay
                together, however many nodes they have.
        """
        last = self._last_round
        prefixes, prefix = np.unique(np.stack([self._place[last], self._width[last]]), axis=1, return_inverse=True)
        ends = np.ones(prefixes.shape[1], bool)
        ends[prefix.reshape(-1)[goes_on[last]]] = False
        self._is_open[prefixes[0, ends]] = False
        while self._rounds:
            chosen = self._choose()
            if len(chosen):
                for spans in self._parts(chosen, max_nodes):
                    yield self._add(spans)
                return

    def _choose(self) -> IntArray:
        """The spans of the next round, in order of their places."""
        shortest, longest = self._rounds.pop(0)
        fits = (self._width >= shortest) & (self._width <= longest)
        chosen = np.flatnonzero(fits & self._is_open[self._place])
        self._last_round = chosen[np.argsort(self._place[chosen], kind="stable")]
        return self._last_round

    def _parts(self, spans: IntArray, max_nodes: int | None) -> Iterator[IntArray]:
        """Cuts spans, in order of their places, into parts that add no more than `max_nodes` nodes each."""
        path = self._span_path[spans]
        if max_nodes is None or not len(spans):
            yield spans
            return
        target = np.zeros_like(self._reached)
        np.maximum.at(target, path, self._span_length[spans])
        paths = np.flatnonzero(target)
        place_of_path = np.zeros_like(self._reached)
        place_of_path[path] = self._place[spans]
        weight = np.bincount(place_of_path[paths], weights=target[paths] - self._reached[paths])
        if len(self._cue):
            with_cue = self._span_length[spans] - self._reached[path] + len(self._cue)
            weight = weight + np.bincount(self._place[spans], weights=with_cue, minlength=len(weight))
        places, first = np.unique(self._place[spans], return_index=True)
        bounds = np.append(first, len(spans))
        for run in packed_runs(weight[places].tolist(), max_nodes):
            yield spans[bounds[run.start] : bounds[run.stop]]

    def _add(self, spans: IntArray) -> GrownRows:
        """Adds the nodes that these spans lack."""
        path, length = self._span_path[spans], self._span_length[spans]
        new = (length > self._reached[path]) | (len(self._cue) > 0)  # the others end at a node scored before
        repeats = np.stack([spans[~new], self._reached_by[path[~new]]])
        spans, path, length = spans[new], path[new], length[new]
        rows = self._rows(path, length)
        trees, tree = np.unique(rows.below, return_inverse=True)
        depth_above = self._reached[rows.path]  # tokens of the path that have nodes already
        table = PathTable.from_rows(
            self._tokens_of(rows),
            rows.length,
            tree.reshape(-1),
            rows.of_span,
            length - self._reached[path] + len(self._cue),
        )
        first_numbers, ends = self._numbered(rows, table, trees)
        row, depth = table.created()
        numbers = first_numbers[row] + depth - table.shared[row]
        first_nodes = bounds_of(table.new_nodes)[:-1]
        above = np.empty_like(depth_above)
        above[table.rank] = self._chain_lengths[self._path_document[rows.path]] + depth_above
        grown = GrownRows(
            token_ids=table.token_ids[row, depth],
            position_ids=self._first_position + above[row] + depth,
            numbers=numbers.astype(np.int32),
            subtree_end=table.subtree_ends(first_numbers, ends)[row, depth].astype(np.int32),
            spans=spans,
            span_nodes=table.span_nodes(first_nodes),
            repeats=repeats,
        )
        self._reach(rows, table, first_nodes, numbers)
        farthest = length == self._reached[path]
        self._reached_by[path[farthest]] = spans[farthest]
        return grown

    def _rows(self, path: IntArray, length: IntArray) -> "_Rows":
        """The rows of tokens that spans on these paths, of these lengths, lack."""
        target = self._reached.copy()
        np.maximum.at(target, path, length)
        base = np.flatnonzero(target > self._reached)
        room = self._room[base]
        of_span = np.searchsorted(base, path)
        own, end, cues = base, target[base], np.zeros_like(base)
        if len(self._cue):  # every span end has a row of its own: the span's tokens, then the cue
            own, end = np.append(base, path), np.append(end, length)
            cues = np.append(cues, np.full(len(path), len(self._cue)))
            of_span = len(base) + np.arange(len(path))
        lengths = end - self._reached[own] + cues
        if len(self._cue):
            taken = np.bincount(path, weights=lengths[len(base) :], minlength=len(self._room)).astype(np.int64)
            self._room -= taken
            room = np.append(self._room[base], lengths[len(base) :])
        below = np.where(self._reached[own] > 0, self._below[own], self._next_root[self._path_document[own]])
        return _Rows(own, lengths, cues, room, below, of_span, len(base))

    def _tokens_of(self, rows: "_Rows") -> IntArray:
        """The rows' tokens, one row after the other."""
        depth = ramp_of(rows.length)
        in_cue = depth - np.repeat(rows.length - rows.cue, rows.length)
        source = np.repeat(self._path_start[rows.path] + self._reached[rows.path], rows.length) + depth
        tokens: IntArray = np.append(self._tokens, 0)[np.where(in_cue < 0, source, -1)]
        tokens[in_cue >= 0] = self._cue[in_cue[in_cue >= 0]]
        return tokens

    def _numbered(self, rows: "_Rows", table: PathTable, trees: IntArray) -> tuple[IntArray, IntArray]:
        """The number of the first node that each sorted row creates [R], and the end of each tree's numbers."""
        room = np.empty_like(rows.room)
        room[table.rank] = rows.room
        total = np.bincount(table.tree, weights=room, minlength=len(trees)).astype(np.int64)
        roots = np.isin(self._next_root, trees)
        self._next_root[roots] += total[np.searchsorted(trees, self._next_root[roots])]
        others = np.isin(self._below, trees)  # of paths that are extended, `_reach` says where they go on
        self._below[others] += total[np.searchsorted(trees, self._below[others])]
        before = np.cumsum(room) - room
        first_row = np.searchsorted(table.tree, table.tree, side="left")
        return trees[table.tree] + before - before[first_row] + table.shared, trees + total

    def _reach(self, rows: "_Rows", table: PathTable, first_nodes: IntArray, numbers: IntArray) -> None:
        """Notes how far the paths have come, and which numbers are left for them below their last node."""
        base, length = rows.path[: rows.num_paths], rows.length[: rows.num_paths]
        row_ends = replace(table, span_row=table.rank[: rows.num_paths], span_depth=length - 1)
        self._below[base] = numbers[row_ends.span_nodes(first_nodes)] + 1
        self._reached[base] += length
        self._room[base] -= length


@dataclass(frozen=True)
class _Rows:
    """R rows of new tokens: first those of paths, then those that end in the cue."""

    path: IntArray  # [R]
    length: IntArray  # [R], tokens, those of the cue among them
    cue: IntArray  # [R], tokens of the cue
    room: IntArray  # [R], numbers to keep for each
    below: IntArray  # [R], the first number free below the node that each hangs from; rows of one node share a tree
    of_span: IntArray  # [K], each span's row
    num_paths: int


def _round_bounds(widest: int) -> list[tuple[int, int]]:
    """Fewest and most words of the spans of each round."""
    starts = [0, *(width for width in ROUND_WIDTHS if width < widest)]
    return [(start + 1, end) for start, end in zip(starts, [*starts[1:], widest], strict=True)]


def _joined(arrays: Sequence[IntArray]) -> IntArray:
    return np.concatenate([np.empty(0, np.int64), *arrays])
