"""Scores documents whose spans are grown: the later rounds of some ride in the passes of the next.

In: prepared documents of one label set, a few at a time. Out: in the same order, documents with their existing
candidates and label logits, as soon as their rounds are done. A pass takes the rows that are ready and then as many
further windows as the budget has room for, in which kept rows count. Where memory runs out, the budget is halved and
what is not done starts anew. Knows nothing of text, entities or label thresholds.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import numpy as np

from .arrays import IntArray
from .cache import DualBufferCache
from .modeling import DecodNERForSpanClassification
from .one_pass_growth import grow_in_one_pass
from .pipeline_io import PreparedDocument
from .prompting import EncodedPrompt
from .round_scoring import GrownWindow, GrowthWindow, RoundScheduler
from .scored_document import ScoredDocument

PASSES_AHEAD = 1  # on a GPU: launched after the one whose results are waited for
ONE_PASS_NODES = 2048  # at most, of a document that is scored in one pass
MEMORY = 1.25  # of a pass and all kept rows, against an exhaustive pass at the same budget


class PassServices(Protocol):
    """What passes need beside their rows: a `DocumentScorer`."""

    model: DecodNERForSpanClassification
    token_budget: int
    weights_version: int

    def in_use(self) -> AbstractContextManager[None]:
        """Keeps other threads from the prefixes, and makes the device current."""

    def prefixes(self, prompts: Sequence[EncodedPrompt]) -> list[DualBufferCache]:
        """Returns the prompts' prefixes."""

    def encode_chain(self, chain: IntArray, cache: DualBufferCache) -> None:
        """Grows a prefix by a document."""

    def halve_budget(self, error: RuntimeError) -> None:
        """Halves the budget where memory ran out; raises any other error."""

    def kept_share(self, caches: Sequence[DualBufferCache]) -> float:
        """Returns the part that a row's keys and values have of all memory that it takes in a pass that keeps them."""


class GrownScoring:
    """Documents of one label set on their way through their rounds."""

    def __init__(self, scorer: PassServices, first: PreparedDocument) -> None:
        """Takes the scorer, and a document to read the label set's prompts and the growth threshold of."""
        assert first.growth_threshold is not None, "growing without a threshold"
        self.scorer, self.prompts, self.threshold = scorer, first.prompts, first.growth_threshold
        self._ahead = PASSES_AHEAD if scorer.model.device.type == "cuda" else 0
        self._documents: deque[PreparedDocument] = deque()  # not given back, in order
        self._kept_share = 0.0  # known once the prefix is encoded
        self._start_anew()

    def _start_anew(self) -> None:
        self._rounds = RoundScheduler(self.scorer.model, self.prompts, self.threshold)
        self._waiting: deque[GrowthWindow] = deque()
        self._planned = 0  # nodes of what waits
        for document in self._documents:
            self._wait_for_room(document)
        self._grown: list[GrownWindow] = []  # of documents that are not complete
        self._weights_version = self.scorer.weights_version

    def serves(self, document: PreparedDocument) -> bool:
        """Whether the document can share passes with these."""
        same = document.growth_threshold == self.threshold and len(document.prompts) == len(self.prompts)
        return same and all(one is other for one, other in zip(document.prompts, self.prompts, strict=True))

    @property
    def pending(self) -> bool:
        """Whether documents were added that were not given back."""
        return bool(self._documents)

    @property
    def fills_a_pass(self) -> bool:
        """Whether the next pass has no room for more than what was added."""
        return self._planned >= self._room

    @property
    def is_running(self) -> bool:
        """Whether the device has a pass to do."""
        return self._rounds.in_flight > 0

    @property
    def unfinished(self) -> list[PreparedDocument]:
        """The documents that were not given back, in order."""
        return list(self._documents)

    def add(self, documents: Sequence[PreparedDocument]) -> None:
        """Adds documents after those added before."""
        self._documents += documents
        for document in documents:
            self._wait_for_room(document)

    def step(self) -> list[ScoredDocument]:
        """Launches a pass and waits for the ones before it; returns the documents that are done.

        Raises:
            ValueError: what the model refuses (a document beyond its positions, say).
        """
        return self._attempt(launches=True)

    def wait(self) -> list[ScoredDocument]:
        """Waits for a pass that was launched; returns the documents that are done."""
        return self._attempt(launches=False)

    def score(self, documents: Sequence[PreparedDocument]) -> list[ScoredDocument]:
        """Scores documents, and all that were added before."""
        if len(documents) == 1 and not self.pending and (found := self._in_one_pass(documents[0])) is not None:
            return [found]
        self.add(documents)
        results: list[ScoredDocument] = []
        while self.pending:
            results += self.step()
        return results

    def _wait_for_room(self, document: PreparedDocument) -> None:
        self._waiting += (GrowthWindow(window, document.source.spans is not None) for window in document.windows)
        self._planned += document.budget_nodes

    def _next_window(self) -> GrowthWindow:
        window = self._waiting.popleft()
        self._planned -= window.encoded.budget_nodes(grown=True)
        return window

    @property
    def _room(self) -> float:
        """Nodes that the next pass has left for further windows."""
        return self._most_nodes - self._rounds.num_kept * self._kept_share - self._rounds.num_ready

    @property
    def _most_nodes(self) -> int:
        """Most nodes of a pass: as of an exhaustive one, or fewer where their keys and values cost too much."""
        budget = self.scorer.token_budget
        return min(budget, max(int(MEMORY * budget * (1 - self._kept_share)), 1))

    def _attempt(self, launches: bool) -> list[ScoredDocument]:
        with self.scorer.in_use():
            if self._weights_version != self.scorer.weights_version:  # what was kept is stale
                self._start_anew()
            try:
                self._kept_share = self.scorer.kept_share(self.scorer.prefixes(self.prompts))
                left = self._ahead if launches and self._launch() else max(self._rounds.in_flight - 1, 0)
                while self._rounds.in_flight > left:
                    self._rounds.settle()
                self._grown += self._rounds.finished()
            except RuntimeError as error:
                self.scorer.halve_budget(error)
                self._start_anew()
        return self._complete()

    def _launch(self) -> bool:
        """Starts a pass, or scores a window beyond the budget; False where nothing could be launched now."""
        most = self._most_nodes
        if self._waiting and len(self._waiting[0].encoded.chain_token_ids) > most:
            if self._rounds.is_idle:
                self._score_long(self._next_window())
                return True
        else:
            self._admit(most)
        return self._rounds.launch(self.scorer.prefixes(self.prompts), most)

    def _admit(self, most: int) -> None:
        """Takes as many windows as fit the next pass; one at least where there is nothing else to do."""
        room, windows = self._room, list[GrowthWindow]()
        while self._waiting and self._rounds.has_ranges:
            encoded = self._waiting[0].encoded
            nodes = encoded.budget_nodes(grown=True)
            if len(encoded.chain_token_ids) > most or (nodes > room and (windows or not self._rounds.is_idle)):
                break
            room -= nodes
            windows.append(self._next_window())
        if windows:
            lengths = [cache.prefix_length for cache in self.scorer.prefixes(self.prompts)]
            self._rounds.admit(windows, lengths, chains_cached=False, max_nodes=most)

    def _score_long(self, window: GrowthWindow) -> None:
        """Grows the spans of a window beyond the budget: its chain is kept with the prefix for as long."""
        caches = self.scorer.prefixes(self.prompts)
        before = [cache.prefix_length for cache in caches]
        try:
            for cache in caches:
                self.scorer.encode_chain(window.encoded.chain_token_ids, cache)
            lengths = [cache.prefix_length for cache in caches]
            self._rounds.admit([window], lengths, chains_cached=True, max_nodes=self._most_nodes)
            while self._rounds.launch(caches, self._most_nodes):
                self._rounds.settle()
        finally:
            for cache, length in zip(caches, before, strict=True):
                cache.crop(length - cache.prefix_length)

    def _in_one_pass(self, document: PreparedDocument) -> ScoredDocument | None:
        """Scores a short document where a CUDA graph makes one pass cheaper than rounds; None where it needs them."""
        if self.scorer.model.graphs is None or len(document.windows) > 1:
            return None
        encoded = document.windows[0]
        if not encoded.candidates.num_spans or encoded.max_nodes > min(ONE_PASS_NODES, self.scorer.token_budget):
            return None
        window = GrowthWindow(encoded, document.source.spans is not None)
        with self.scorer.in_use():
            try:
                caches = self.scorer.prefixes(self.prompts)
                grown = grow_in_one_pass(self.scorer.model, window, self.prompts, caches, self.threshold)
            except RuntimeError as error:
                self.scorer.halve_budget(error)
                grown = None
        if grown is None:
            return None
        done = replace(document, windows=(grown.window,), not_grown=grown.not_grown)
        return ScoredDocument(done, grown.label_logits)

    def _complete(self) -> list[ScoredDocument]:
        """Gives back the documents of which all windows are done."""
        results = []
        while self._documents and len(self._grown) >= len(self._documents[0].windows):
            document = self._documents.popleft()
            grown, self._grown = self._grown[: len(document.windows)], self._grown[len(document.windows) :]
            windows = tuple(found.window for found in grown)
            done = replace(document, windows=windows, not_grown=sum(found.not_grown for found in grown))
            results.append(ScoredDocument(done, np.concatenate([found.label_logits for found in grown])))
        return results
