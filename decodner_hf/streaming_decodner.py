"""Runs a pipeline over a stream of documents, so that host and device work at the same time.

In: a pipeline with the stages `preprocess`, `launch`, `collect` and `postprocess`, and any iterable. Out: results,
lazily, in input order. A worker thread encodes the next group while one is scored; a pass is decoded during the next.
Knows nothing of how a stage works.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .requests_decodner import Settings, items, size
from .results_decodner import Prepared
from .scoring_decodner import ScoredRun

DOCUMENTS_AT_ONCE = 256  # encoded together
CHARACTERS_AT_ONCE = 65536

_Launched = tuple[list[Prepared], list[list[ScoredRun]]]


class EntityStream:
    """The results of a pipeline over an iterable of documents, one list of dicts each, in input order, lazily."""

    def __init__(self, pipeline: Any, inputs: Any, settings: Settings) -> None:
        """Nothing is read before the first result is asked for."""
        self.pipeline, self.inputs, self.settings = pipeline, inputs, settings

    def __len__(self) -> int:
        """Number of documents, where the input knows it."""
        return len(self.inputs)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Yields each document's entities; the next group is encoded, and the last pass decoded, during a pass."""
        groups = self._groups()
        launched: list[_Launched] = []
        with ThreadPoolExecutor(1) as worker:
            coming = worker.submit(next, groups, None)
            while True:
                if not coming.done() or coming.exception() is not None:
                    yield from self._finish(launched)
                group = coming.result()
                if not group:
                    break
                coming = worker.submit(next, groups, None)
                for run in self._runs(group):
                    try:
                        following = self._launch(run)
                    except Exception:
                        yield from self._finish(launched)  # what came before the documents that cannot be scored
                        raise
                    before, launched = launched, following
                    yield from self._finish(before)
        yield from self._finish(launched)

    def _launch(self, run: list[Prepared]) -> "list[_Launched]":
        return [(run, self.pipeline.launch(run))]

    def _finish(self, launched: "list[_Launched]") -> Iterator[list[dict[str, Any]]]:
        """Waits for what was launched, empties the list, and yields the documents' entities."""
        while launched:
            run, scores = launched.pop(0)
            yield from self.pipeline.postprocess((run, self.pipeline.collect(run, scores)), self.settings)

    def _groups(self) -> Iterator[list[Prepared]]:
        """Documents encoded in groups; where reading them fails, the failure comes behind those read before."""
        source, failure = items(self.inputs), None
        group: list[Any] = []
        first = characters = 0
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
            if len(group) >= DOCUMENTS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
                yield self.pipeline.preprocess(group, self.settings, first)
                first, group, characters = first + len(group), [], 0
        if group:
            yield self.pipeline.preprocess(group, self.settings, first)
        if failure is not None:
            raise failure

    def _runs(self, group: list[Prepared]) -> Iterator[list[Prepared]]:
        """Consecutive documents of one label set that fit a pass together; windows of a document stay together."""
        start = 0
        while start < len(group):
            end = start
            while end < len(group) and group[end].labels == group[start].labels:
                end += 1
            alike = group[start:end]
            for run in self.pipeline.scorer.runs([prepared.num_nodes for prepared in alike]):
                yield alike[run.start : run.stop]
            start = end
