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
from .round_candidates import RoundCandidates, WiderSpans, ended_prefixes, joined

NUMBERS = 2**27  # of one forest, where not all candidates are listed; int32 holds 16 such ranges
SPARE_NUMBERS = 2**14  # kept for each word, at most, for candidates that are not listed and hang from no other


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
    last_width = np.full(int(place.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(last_width, *ended_prefixes(place, width, goes_on))
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
        wider: Sequence[WiderSpans | None] | None = None,
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
            wider: per document what finds its candidates that are not among `paths`, if there are any.
        """
        self._cue = np.asarray(cue_token_ids, np.int64)
        self._chains = [np.asarray(chain, np.int64) for chain in chains]
        self._chain_lengths = np.array([len(chain) for chain in chains], np.int64)
        self.candidates = RoundCandidates(paths, places, widths, wider)
        paths_so_far = len(self.candidates.path_start)
        self._room = self._numbers_needed()
        self._reached = np.zeros(paths_so_far, np.int64)  # [paths]: tokens that have nodes
        self._reached_by = np.zeros(paths_so_far, np.int64)  # [paths]: the span that ends there
        self._below = np.full(paths_so_far, -1)  # [paths]: the first number free below the node there
        needed = np.bincount(self.candidates.path_document, weights=self._room, minlength=len(paths)).astype(np.int64)
        if self.candidates.has_wider:
            num_places = self.candidates.num_places
            spare = (NUMBERS - int(needed.sum() + self._chain_lengths.sum())) // max(int(num_places.sum()), 1)
            needed += num_places * min(max(spare, 0), SPARE_NUMBERS)
        bounds = first_number + bounds_of(self._chain_lengths + needed)
        self._document_start, self._document_end = bounds[:-1], bounds[1:]
        self._next_root = self._document_start + self._chain_lengths  # [B]: the first number that no path has
        self._first_position = first_position
        self.next_number = int(bounds[-1])

    @property
    def num_spans(self) -> int:
        """Number of candidate spans known so far (S)."""
        return len(self.candidates.span_path)

    def first_round(self, max_nodes: int | None = None) -> Iterator[GrownRows]:
        """Yields the documents' chains and their shortest spans; see `next_round` for `max_nodes`."""
        lengths = self._chain_lengths
        depth = ramp_of(lengths)
        numbers = np.repeat(self._document_start, lengths) + depth
        ends = np.repeat(self._document_end - 1, lengths)
        room = None if max_nodes is None else max(max_nodes - len(depth), 1)
        for part, spans in enumerate(self._parts(self._chosen(), room)):
            grown = self._add(spans)
            if part:
                yield grown
                continue
            yield GrownRows(
                token_ids=np.append(joined(self._chains), grown.token_ids),
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
        self.candidates.close(goes_on)
        while (chosen := self._chosen()) is not None:
            if len(chosen):
                for spans in self._parts(chosen, max_nodes):
                    yield self._add(spans)
                return

    def open_ends(self, goes_on: BoolArray) -> IntArray:
        """Returns, after a round, the numbers below which later rounds may add nodes, ascending.

        A node whose subtree holds none of them is seen by no later node. For the argument see `next_round`.
        """
        self.candidates.close(goes_on)
        is_open = self.candidates.open_places()
        paths = np.unique(self.candidates.span_path[is_open[self.candidates.place]])
        documents = self.candidates.open_documents(is_open)
        chain_ends = self._document_start[documents] + self._chain_lengths[documents]
        return np.unique(np.append(self._below[paths[self._reached[paths] > 0]], chain_ends)) - 1

    def _chosen(self) -> IntArray | None:
        """The spans of the next round; paths found for it have no nodes yet."""
        chosen = self.candidates.choose()
        if (added := len(self.candidates.path_start) - len(self._reached)) > 0:
            nothing = np.zeros(added, np.int64)
            self._room = np.append(self._room, self._numbers_needed()[-added:])
            self._reached, self._reached_by = np.append(self._reached, nothing), np.append(self._reached_by, nothing)
            self._below = np.append(self._below, nothing - 1)
        return chosen

    def _numbers_needed(self) -> IntArray:
        """Numbers that each path can need: its tokens and, for each of its spans, a copy of them with the cue."""
        candidates = self.candidates
        needed = candidates.path_length.copy()
        if len(self._cue):
            np.add.at(needed, candidates.span_path, candidates.span_length + len(self._cue))
            if candidates.has_wider:
                needed += candidates.widest * (candidates.path_length + len(self._cue))
        return needed

    def _parts(self, spans: IntArray | None, max_nodes: int | None) -> Iterator[IntArray]:
        """Cuts spans, in order of their places, into parts that add no more than `max_nodes` nodes each."""
        candidates = self.candidates
        if spans is None or max_nodes is None or not len(spans):
            yield np.empty(0, np.int64) if spans is None else spans
            return
        path = candidates.span_path[spans]
        target = np.zeros_like(self._reached)
        np.maximum.at(target, path, candidates.span_length[spans])
        paths = np.flatnonzero(target)
        place_of_path = np.zeros_like(self._reached)
        place_of_path[path] = candidates.place[spans]
        weight = np.bincount(place_of_path[paths], weights=target[paths] - self._reached[paths])
        if len(self._cue):
            with_cue = candidates.span_length[spans] - self._reached[path] + len(self._cue)
            weight = weight + np.bincount(candidates.place[spans], weights=with_cue, minlength=len(weight))
        places, first = np.unique(candidates.place[spans], return_index=True)
        bounds = np.append(first, len(spans))
        for run in packed_runs(weight[places].tolist(), max_nodes):
            yield spans[bounds[run.start] : bounds[run.stop]]

    def _add(self, spans: IntArray) -> GrownRows:
        """Adds the nodes that these spans lack."""
        path, length = self.candidates.span_path[spans], self.candidates.span_length[spans]
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
        above[table.rank] = self._chain_lengths[self.candidates.path_document[rows.path]] + depth_above
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
        below = np.where(self._reached[own] > 0, self._below[own], self._next_root[self.candidates.path_document[own]])
        return _Rows(own, lengths, cues, room, below, of_span, len(base))

    def _tokens_of(self, rows: "_Rows") -> IntArray:
        """The rows' tokens, one row after the other."""
        depth = ramp_of(rows.length)
        in_cue = depth - np.repeat(rows.length - rows.cue, rows.length)
        source = np.repeat(self.candidates.path_start[rows.path] + self._reached[rows.path], rows.length) + depth
        tokens: IntArray = np.append(self.candidates.tokens, 0)[np.where(in_cue < 0, source, -1)]
        tokens[in_cue >= 0] = self._cue[in_cue[in_cue >= 0]]
        return tokens

    def _numbered(self, rows: "_Rows", table: PathTable, trees: IntArray) -> tuple[IntArray, IntArray]:
        """The number of the first node that each sorted row creates [R], and the end of each tree's numbers."""
        room = np.empty_like(rows.room)
        room[table.rank] = rows.room
        total = np.bincount(table.tree, weights=room, minlength=len(trees)).astype(np.int64)
        roots = np.isin(self._next_root, trees)
        self._next_root[roots] += total[np.searchsorted(trees, self._next_root[roots])]
        if (self._next_root > self._document_end).any() or (rows.room < rows.length).any():
            raise ValueError(
                "the spans of a document need more numbers than are kept for them: lower max_span_words, or score it "
                "without growth."
            )
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
