"""Runs a pipeline over a stream of documents, so that host and device work at the same time.

In: a pipeline with the stages `preprocess`, `launch`, `collect` and `postprocess`, and any iterable. Out: results,
lazily, in input order. A worker thread encodes the next groups while one is scored; a pass is decoded during the next.
Knows nothing of how a stage works.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .requests import Settings, items, size
from .results import Prepared
from .scoring import DocumentScorer, ScoredRun

DOCUMENTS_AT_ONCE = 256  # encoded together
CHARACTERS_AT_ONCE = 65536
FIRST_PART = 8  # the first group is such a part of a whole one, for nothing runs while it is encoded
GROUPS_AHEAD = 2
PASSES_AHEAD = 2  # launched behind the one that is read


class EntityStream:
    """The results of a pipeline over an iterable of documents, one list of dicts each, in input order, lazily."""

    def __init__(self, pipeline: Any, inputs: Any, settings: Settings) -> None:
        """Nothing is read before the first result is asked for."""
        self.pipeline, self.inputs, self.settings = pipeline, inputs, settings

    def __len__(self) -> int:
        """Number of documents, where the input knows it."""
        return len(self.inputs)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Yields each document's entities; groups are encoded, and the last pass decoded, during a pass."""
        groups, passes = self.groups(), _Passes(self.pipeline, self.settings)
        with ThreadPoolExecutor(1) as worker:
            coming = deque(worker.submit(next, groups, None) for _ in range(GROUPS_AHEAD))
            while True:
                encoding = coming.popleft()
                while passes.pending and not encoding.done():
                    yield from passes.advance()
                if encoding.exception() is not None:
                    yield from passes.finish()
                group = encoding.result()
                if not group:
                    break
                coming.append(worker.submit(next, groups, None))
                yield from passes.add(group)
        yield from passes.finish()

    def groups(self) -> Iterator[list[Prepared]]:
        """Documents encoded in groups; where reading them fails, the failure comes behind those read before."""
        source, failure = items(self.inputs), None
        group: list[Any] = []
        first = characters = 0
        part = FIRST_PART
        while True:
            try:
                document = next(source)
            except StopIteration:
                break
            except Exception as error:  # the caller's own, raised again below
                failure = error
                break
            group.append(document)
            characters += size(document)
            if len(group) >= DOCUMENTS_AT_ONCE // part or characters >= CHARACTERS_AT_ONCE // part:
                yield self.pipeline.preprocess(group, self.settings, first)
                first, group, characters, part = first + len(group), [], 0, max(1, part // 2)
        if group:
            yield self.pipeline.preprocess(group, self.settings, first)
        if failure is not None:
            raise failure


class _Passes:
    """Documents on their way through the device; what fills no pass waits for more, unless the device would wait."""

    def __init__(self, pipeline: Any, settings: Settings) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.held: list[Prepared] = []
        self.launched: list[tuple[list[Prepared], list[list[ScoredRun]]]] = []

    @property
    def pending(self) -> bool:
        """Whether documents were added whose entities were not yielded."""
        return bool(self.held or self.launched)

    def add(self, group: list[Prepared]) -> Iterator[list[dict[str, Any]]]:
        """Launches the passes that a further group fills; yields the entities of those before."""
        *full, last = cut(self.pipeline.scorer, self.held + group)
        self.held = []
        for run in full:
            yield from self._launch(run)
        has_room = sum(prepared.num_nodes for prepared in last) < self.pipeline.scorer.token_budget
        if has_room and self.launched:
            self.held = last
        else:
            yield from self._launch(last)

    def advance(self) -> Iterator[list[dict[str, Any]]]:
        """Yields the entities of the oldest pass; where none is launched, launches what is held."""
        if self.launched:
            yield from self._read(len(self.launched) - 1)
        else:
            yield from self._launch_held()

    def finish(self) -> Iterator[list[dict[str, Any]]]:
        """Launches what is held and yields the entities of everything."""
        yield from self._launch_held()
        yield from self._read(0)

    def _launch_held(self) -> Iterator[list[dict[str, Any]]]:
        if self.held:
            run, self.held = self.held, []
            yield from self._launch(run)

    def _launch(self, run: list[Prepared]) -> Iterator[list[dict[str, Any]]]:
        try:
            scores = self.pipeline.launch(run)
        except Exception:
            yield from self._read(0)  # what came before the documents that cannot be scored
            raise
        self.launched.append((run, scores))
        yield from self._read(PASSES_AHEAD)

    def _read(self, left: int) -> Iterator[list[dict[str, Any]]]:
        """Waits for all but the `left` passes last launched, and yields their documents' entities."""
        while len(self.launched) > left:
            run, scores = self.launched.pop(0)
            yield from self.pipeline.postprocess((run, self.pipeline.collect(run, scores)), self.settings)


def cut(scorer: DocumentScorer, documents: Sequence[Prepared]) -> Iterator[list[Prepared]]:
    """Consecutive documents of one label set that fit a pass together; windows of a document stay together."""
    start = 0
    while start < len(documents):
        end = start
        while end < len(documents) and documents[end].labels == documents[start].labels:
            end += 1
        alike = documents[start:end]
        for run in scorer.runs([prepared.num_nodes for prepared in alike]):
            yield list(alike[run.start : run.stop])
        start = end
