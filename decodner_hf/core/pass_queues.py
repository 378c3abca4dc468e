"""Keeps the device busy: documents on their way through it, in passes that are launched before others are read.

In: prepared documents, a few at a time, and a scorer. Out: scored documents, in order. What fills no pass is held
until more comes, unless the device would be idle meanwhile. Where a document cannot be scored, the results of all
before it come first, and then its error.
Knows nothing of how documents are scored, nor of texts and entities.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Protocol

from .arrays import packed_runs
from .grown_scoring import GrownScoring
from .pipeline_io import PreparedDocument
from .scored_document import ScoredDocument
from .scoring import PendingScores
from .spans import DocumentError

PASSES_AHEAD = 2  # launched after the one whose results are waited for

Skip = Callable[[DocumentError], None]  # gets the errors of documents, in place of having them raised


class Scorer(Protocol):
    """What scores documents: a `DocumentScorer`, for one."""

    token_budget: int

    def launch(self, documents: Sequence[PreparedDocument]) -> PendingScores:
        """Starts scoring all candidates of documents of one label set."""

    def growing(self, first: PreparedDocument) -> GrownScoring:
        """Returns what scores documents like `first`, whose spans are grown, as they come."""


class PassQueue:
    """Documents on their way through the device.

    What fills no pass is held until more comes, unless the device would be idle meanwhile.
    """

    def __init__(self, scorer: Scorer, skip: Skip | None = None) -> None:
        """Starts empty; `skip` gets the errors of documents that cannot be scored, in place of having them raised."""
        self.scorer, self.skip = scorer, skip
        self.held: list[PreparedDocument] = []
        self.launched: deque[PendingScores] = deque()

    @property
    def pending(self) -> bool:
        """Whether documents were added whose scores were not yielded."""
        return bool(self.held or self.launched)

    def add(self, group: Sequence[PreparedDocument]) -> Iterator[list[ScoredDocument]]:
        """Launches the passes that a further group fills; yields the results of those before."""
        *full, last = documents_by_pass([*self.held, *group], self.scorer.token_budget)
        self.held = []
        for documents in full:
            yield from self._launch(documents)
        has_room = sum(document.budget_nodes for document in last) < self.scorer.token_budget
        if has_room and self.launched:
            self.held = last
        else:
            yield from self._launch(last)

    def advance(self) -> Iterator[list[ScoredDocument]]:
        """Yields the results of the oldest pass; where none is launched, launches what is held."""
        if self.launched:
            yield from self._wait(len(self.launched) - 1)
        else:
            yield from self._launch_held()

    def finish(self) -> Iterator[list[ScoredDocument]]:
        """Launches what is held and yields the results of everything."""
        yield from self._launch_held()
        yield from self._wait(0)

    def _launch_held(self) -> Iterator[list[ScoredDocument]]:
        if self.held:
            documents, self.held = self.held, []
            yield from self._launch(documents)

    def _launch(self, documents: list[PreparedDocument]) -> Iterator[list[ScoredDocument]]:
        try:
            self.launched.append(self.scorer.launch(documents))
        except Exception as error:
            yield from self._wait(0)  # what came before the documents that cannot be scored
            if not isinstance(error, ValueError):
                raise
            yield from one_by_one(documents, error, lambda one: self.scorer.launch([one]).wait(), self.skip)
        yield from self._wait(PASSES_AHEAD)

    def _wait(self, left: int) -> Iterator[list[ScoredDocument]]:
        """Waits for all but the `left` passes last launched, and yields their results."""
        while len(self.launched) > left:
            yield self.launched.popleft().wait()


class GrowthQueue:
    """Documents whose spans are grown, on their way through the device; held and launched as by a `PassQueue`."""

    def __init__(self, scorer: Scorer, skip: Skip | None = None) -> None:
        """Starts empty; for `skip` see `PassQueue`."""
        self.scorer, self.skip = scorer, skip
        self.growing: GrownScoring | None = None

    @property
    def pending(self) -> bool:
        """Whether documents were added whose scores were not yielded."""
        return self.growing is not None and self.growing.pending

    def add(self, group: Sequence[PreparedDocument]) -> Iterator[list[ScoredDocument]]:
        """Launches the passes that a further group fills; yields the results of those before."""
        for _, same in groupby(group, key=lambda document: document.source.labels):
            documents = list(same)
            if self.growing is None or not self.growing.serves(documents[0]):
                yield from self.finish()
                self.growing = self.scorer.growing(documents[0])
            self.growing.add(documents)
            while self.growing is not None and self.growing.fills_a_pass:
                yield from self._results(self.growing.step)

    def advance(self) -> Iterator[list[ScoredDocument]]:
        """Yields the results of the oldest pass; where none is launched, launches what is held."""
        if self.growing is not None:
            yield from self._results(self.growing.wait if self.growing.is_running else self.growing.step)

    def finish(self) -> Iterator[list[ScoredDocument]]:
        """Yields the results of everything."""
        while self.growing is not None and self.growing.pending:
            yield from self._results(self.growing.step)

    def _results(self, advance: Callable[[], list[ScoredDocument]]) -> Iterator[list[ScoredDocument]]:
        """Yields what is done; where that fails, what comes before the document that cannot be scored."""
        assert self.growing is not None
        documents = self.growing.unfinished
        try:
            done = advance()
        except ValueError as error:
            self.growing = None
            alone = self.scorer.growing
            yield from one_by_one(documents, error, lambda one: alone(one).score([one]), self.skip)
        else:
            if done:
                yield done


def one_by_one(
    documents: Sequence[PreparedDocument],
    error: ValueError,
    score: Callable[[PreparedDocument], list[ScoredDocument]],
    skip: Skip | None,
) -> Iterator[list[ScoredDocument]]:
    """Scores each of the documents that were refused together, with this error, up to one that is refused again."""
    for document in documents:
        try:
            if len(documents) == 1:
                raise error
            scored = score(document)
        except ValueError as problem:
            refused = DocumentError(document.source.number, str(problem))
            if skip is None:
                raise refused from problem
            skip(refused)
        else:
            yield scored


def documents_by_pass(documents: Sequence[PreparedDocument], budget: int) -> Iterator[list[PreparedDocument]]:
    """Cuts documents into those that fit a pass together: consecutive ones of one label set, in whole documents."""
    for _, same in groupby(documents, key=lambda document: document.source.labels):
        alike = list(same)
        for run in packed_runs([document.budget_nodes for document in alike], budget):
            yield alike[run.start : run.stop]
