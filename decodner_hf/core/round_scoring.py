"""Scores windows in rounds: first the shortest spans, then longer ones where every shorter prefix goes on.

In: a model, prompts with their cached prefixes, and groups of encoded windows. Out: per window the candidate spans
that exist, and their label logits. Scores of what is scored are those of exhaustive scoring.
Rounds of several groups share a pass: the nodes of each group have numbers in a range of its own, so that no group
sees another. A group's keys and values are kept as long as a later round of it may read them.
Knows nothing of text, entities, label thresholds or budgets.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .arrays import BoolArray, FloatingArray, IndexArray, IntArray, bounds_of
from .cache import DualBufferCache
from .decoding import merge_shards
from .forest import SpanPaths
from .growth import NUMBERS, GrowingForest, GrownRows, existing_spans, goes_on_probability
from .kept_rows import KeptRows
from .modeling import DecodNERForSpanClassification
from .prompting import EncodedPrompt
from .spans import CandidateSpans, EncodedDocument
from .transfers import HostCopy

MOST_GROUPS = 2**31 // NUMBERS  # whose ranges of numbers int32 holds
NO_PATHS = SpanPaths.from_lists([])


@dataclass(frozen=True)
class GrowthWindow:
    """A window whose spans are to be grown; `all_exist` where they all exist, as a caller's own spans do."""

    encoded: EncodedDocument
    all_exist: bool

    def widths(self) -> IntArray:
        """Each listed candidate's number of words, int64 [S]; 1 where all exist."""
        candidates = self.encoded.candidates
        return np.ones_like(candidates.start_word) if self.all_exist else candidates.end_word - candidates.start_word


@dataclass(frozen=True)
class GrownWindow:
    """What growing the spans of a window gives.

    Attributes:
        window: the window with the candidates that exist, K of them, without their tokens.
        label_logits: [K, L + 1], the none label's first.
        not_grown: number of its listed candidates that do not exist.
    """

    window: EncodedDocument
    label_logits: FloatingArray
    not_grown: int


@dataclass(frozen=True)
class _Shard:
    """One prompt's share of the work: whose logits are wanted, and the rows that later rounds read."""

    tokens: IntArray
    cue: tuple[int, ...]
    kept_rows: KeptRows

    @classmethod
    def of(cls, prompt: EncodedPrompt) -> "_Shard":
        tokens = np.append(prompt.symbol_token_ids, prompt.question_token_ids)
        return cls(tokens, tuple(prompt.cue_token_ids.tolist()), KeptRows())


@dataclass(frozen=True)
class _Pass:
    """A pass that was launched: the groups that ride in it, with their rows per shard, and its logits per shard."""

    riders: Sequence[tuple["_Group", tuple[GrownRows, ...]]]
    logits: Sequence[HostCopy | None]  # None for a pass without rows


class RoundScheduler:
    """Runs the rounds of groups of windows of one label set in shared passes.

    A group is ready when its next rows are known; in flight from `launch` to `settle`; and then ready again, or done.
    """

    def __init__(
        self, model: DecodNERForSpanClassification, prompts: Sequence[EncodedPrompt], threshold: float
    ) -> None:
        """Takes the shards of the label set, and the probability from which on a span goes on."""
        self._model, self._threshold = model, threshold
        self._shards = [_Shard.of(prompt) for prompt in prompts]
        self._groups: deque[_Group] = deque()
        self._launched: deque[_Pass] = deque()

    @property
    def in_flight(self) -> int:
        """Number of passes that were launched and not settled."""
        return len(self._launched)

    @property
    def is_idle(self) -> bool:
        """Whether all groups are done."""
        return not self._groups

    @property
    def has_ranges(self) -> bool:
        """Whether there is a range of numbers for another group."""
        return len(self._groups) < MOST_GROUPS

    @property
    def num_kept(self) -> int:
        """Number of rows that are kept for later rounds."""
        return self._shards[0].kept_rows.num_rows

    @property
    def num_ready(self) -> int:
        """Number of rows that the next pass can take of the groups that are under way."""
        return sum(group.num_ready for group in self._groups)

    def admit(
        self, windows: Sequence[GrowthWindow], prefix_lengths: Sequence[int], chains_cached: bool, max_nodes: int
    ) -> None:
        """Takes B windows as a further group, which is ready.

        Args:
            windows: with their candidates.
            prefix_lengths: per prompt the length of its cached prefix.
            chains_cached: whether that holds the chain of the only window, too.
            max_nodes: most nodes of a part of a round.
        """
        taken = {group.first_number for group in self._groups}
        first_number = next(index * NUMBERS for index in range(MOST_GROUPS) if index * NUMBERS not in taken)
        encoded = [window.encoded for window in windows]
        nothing = np.empty(0, np.int64)
        forests = [
            GrowingForest(
                [nothing if chains_cached else window.chain_token_ids for window in encoded],
                [window.candidates.paths for window in encoded],
                [window.candidates.start_word for window in encoded],
                [window.widths() for window in windows],
                first_position=length,
                first_number=first_number,
                cue_token_ids=shard.cue,
                wider=[window.wider for window in encoded],
            )
            for shard, length in zip(self._shards, prefix_lengths, strict=True)
        ]
        columns = [len(shard.tokens) - 2 for shard in self._shards]
        self._groups.append(_Group(windows, forests, columns, first_number, max_nodes))

    def launch(self, caches: Sequence[DualBufferCache], max_nodes: int) -> bool:
        """Starts a pass over the ready groups' rows, the oldest group's first; False where none is ready.

        Args:
            caches: per prompt its cached prefix.
            max_nodes: of the pass; more only where a single group's part has more.
        """
        riders: list[tuple[_Group, tuple[GrownRows, ...]]] = []
        rows = 0
        for group in self._groups:
            if group.ready is not None and (not riders or rows + group.num_ready <= max_nodes):
                rows += group.num_ready
                riders.append((group, group.take()))
        if not riders:
            return False
        logits: list[HostCopy | None] = []
        for number, (shard, cache) in enumerate(zip(self._shards, caches, strict=True)):
            together = _together([parts[number] for _, parts in riders])
            if not len(together.token_ids):
                logits.append(None)
                continue
            logits.append(HostCopy(self._model.score_rows(together, shard.tokens, cache, shard.kept_rows)))
        self._launched.append(_Pass(riders, logits))
        return True

    def settle(self) -> None:
        """Waits for the oldest pass in flight; its groups are then ready for their next round, or done."""
        settled = self._launched.popleft()
        found = [None if copy is None else copy.array() for copy in settled.logits]
        start = 0
        for group, parts in settled.riders:
            end = start + len(parts[0].spans)
            group.settle(parts, [None if array is None else array[start:end] for array in found], self._threshold)
            start = end
        self._drop_rows()

    def finished(self) -> list[GrownWindow]:
        """Returns the windows of the oldest groups that are done, in the order in which they were admitted."""
        windows: list[GrownWindow] = []
        while self._groups and self._groups[0].is_done:
            windows += self._groups.popleft().result()
        return windows

    def _drop_rows(self) -> None:
        """Forgets rows that no later round reads, once they are a quarter of all."""
        for number, shard in enumerate(self._shards):
            structure = shard.kept_rows.structure
            needed = np.zeros(len(structure.numbers), bool)
            for group in self._groups:
                needed |= group.needs(number, structure.numbers, structure.subtree_end)
            if 4 * np.count_nonzero(~needed) > len(needed):
                shard.kept_rows.select(np.flatnonzero(needed))


class _Group:
    """The windows that were admitted together: their forests, one a shard, and what was scored of them so far."""

    def __init__(
        self,
        windows: Sequence[GrowthWindow],
        forests: Sequence[GrowingForest],
        columns: Sequence[int],
        first_number: int,
        max_nodes: int,
    ) -> None:
        self.windows, self.first_number = windows, first_number
        self._forests, self._max_nodes = forests, max_nodes
        self._end = max(forest.next_number for forest in forests)
        self._goes_on = np.zeros(0, bool)
        self._logits: list[FloatingArray] = [np.zeros((0, count), np.float32) for count in columns]
        self._parts: Iterator[tuple[GrownRows, ...]] = zip(
            *(forest.first_round(max_nodes) for forest in forests), strict=True
        )
        self._open_ends: list[IntArray] | None = None  # per shard, after a round; None in the middle of one
        self.is_done = False
        self.ready: tuple[GrownRows, ...] | None = None
        self._next_part()

    @property
    def num_ready(self) -> int:
        """Number of rows that a pass would take."""
        return 0 if self.ready is None else len(self.ready[0].token_ids)

    def take(self) -> tuple[GrownRows, ...]:
        """Gives the ready rows, one part a shard, to a pass."""
        assert self.ready is not None
        parts, self.ready, self._open_ends = self.ready, None, None
        return parts

    def settle(self, parts: tuple[GrownRows, ...], found: Sequence[FloatingArray | None], threshold: float) -> None:
        """Notes the logits of a pass, and which spans go on: those that any shard says so of."""
        rows = parts[0]
        again, source = rows.repeats
        odds = np.full(len(rows.spans), -np.inf)
        for shard, values in enumerate(found):
            if values is None:
                continue
            if values.dtype != self._logits[shard].dtype:
                self._logits[shard] = self._logits[shard].astype(values.dtype)
            logits = self._logits[shard]
            logits[rows.spans] = values[:, :-2]
            odds = np.maximum(odds, values[:, -2].astype(np.float64) - values[:, -1])
        for logits in self._logits:
            logits[again] = logits[source]
        self._goes_on[rows.spans] = goes_on_probability(odds) >= threshold
        self._goes_on[again] = self._goes_on[source]
        self._next_part()

    def needs(self, shard: int, numbers: IndexArray, subtree_end: IndexArray) -> BoolArray:
        """Which of these rows a later pass may read."""
        own: BoolArray = (numbers >= self.first_number) & (numbers < self._end)
        if self.is_done:
            return np.zeros_like(own)
        if self._open_ends is None:
            return own
        ends = self._open_ends[shard]
        return own & (np.searchsorted(ends, numbers) < np.searchsorted(ends, subtree_end, side="right"))

    def result(self) -> list[GrownWindow]:
        """The windows with the candidates that exist, in the order of an exhaustive list."""
        known = self._forests[0].candidates
        document = known.path_document[known.span_path]
        exists = existing_spans(known.place, known.width, self._goes_on)
        chosen = np.flatnonzero(exists)
        if known.has_wider:  # what was found on demand comes after all that was listed
            in_words = np.array([not window.all_exist for window in self.windows])[document[chosen]]
            keys = (known.width[chosen] * in_words, known.place[chosen] * in_words, document[chosen])
            chosen = chosen[np.lexsort(keys)]
        bounds = np.searchsorted(document[chosen], np.arange(len(self.windows) + 1)).tolist()
        listed = bounds_of(np.array([window.encoded.candidates.num_spans for window in self.windows], np.int64))
        start, end, start_word, end_word = self._bounds(chosen, document)
        shards = [logits[chosen] for logits in self._logits]
        logits = merge_shards(shards) if len(shards) > 1 else shards[0]
        left_out = np.diff(np.append(0, np.cumsum(~exists))[listed])
        results = []
        for window, (first, last), count in zip(self.windows, pairwise(bounds), left_out.tolist(), strict=True):
            own = slice(first, last)
            candidates = CandidateSpans(start[own], end[own], start_word[own], end_word[own], NO_PATHS)
            existing = replace(window.encoded, candidates=candidates, wider=None)
            results.append(GrownWindow(existing, logits[own], count))
        return results

    def _bounds(self, chosen: IntArray, document: IntArray) -> list[IntArray]:
        """Start, end, start word and end word of spans."""
        names = ("start", "end", "start_word", "end_word")
        encoded = [window.encoded for window in self.windows]
        listed = [np.concatenate([getattr(w.candidates, name) for w in encoded]) for name in names]
        known = self._forests[0].candidates
        found = np.arange(len(listed[0]), len(known.place))  # not listed
        if not len(found):
            return [column[chosen] for column in listed]
        first_place = bounds_of(known.num_places)[:-1]
        first_word = bounds_of(np.array([len(w.word_starts) for w in encoded], np.int64))[:-1]
        word = known.place[found] - first_place[document[found]]
        end_word, at = word + known.width[found], first_word[document[found]]
        starts, ends = (np.concatenate([getattr(w, name) for w in encoded]) for name in ("word_starts", "word_ends"))
        columns = (starts[at + word], ends[at + end_word - 1], word, end_word)
        return [np.append(one, other)[chosen] for one, other in zip(listed, columns, strict=True)]

    def _next_part(self) -> None:
        """Finds the rows to run next, of this round or a later one."""
        self.ready = next(self._parts, None)
        if self.ready is None:
            self._open_ends = [forest.open_ends(self._goes_on) for forest in self._forests]
            if len(self._open_ends[0]):
                later = (forest.next_round(self._goes_on, self._max_nodes) for forest in self._forests)
                self._parts = zip(*later, strict=True)
                self.ready = next(self._parts, None)
            self.is_done = self.ready is None
        added = self._forests[0].num_spans - len(self._goes_on)
        if added:
            self._goes_on = np.append(self._goes_on, np.zeros(added, bool))
            self._logits = [
                np.append(part, np.zeros((added, part.shape[1]), part.dtype), axis=0) for part in self._logits
            ]


def _together(parts: Sequence[GrownRows]) -> GrownRows:
    """The rows of several groups as one pass, the spans counted within each group."""
    if len(parts) == 1:
        return parts[0]
    shift = bounds_of(np.array([len(part.token_ids) for part in parts], np.int64))
    names = ("token_ids", "position_ids", "numbers", "subtree_end", "spans")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    nodes = [part.span_nodes + first for part, first in zip(parts, shift[:-1].tolist(), strict=True)]
    repeats = np.concatenate([part.repeats for part in parts], axis=1)
    return GrownRows(**joined, span_nodes=np.concatenate(nodes), repeats=repeats)
