"""Scores all candidates of prepared documents with a model, in packed passes of at most a budget of tokens.

In: prepared documents, whose windows and prompts are token ids. Out: label logits of every candidate span, document by
document, asynchronously: passes are launched without waiting for their results.
Short documents share a pass; a document beyond the budget is kept as a prefix and its spans take several passes. The
result does not depend on the packing. Where memory runs out, the budget is halved and the pass repeated.
Knows nothing of text, thresholds or entities.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice, pairwise
from threading import RLock
from typing import Any, TypeVar

import numpy as np
import torch

from .arrays import FloatingArray, IntArray, packed_runs
from .cache import DualBufferCache
from .decoding import merge_shards
from .forest import SpanPaths, build_forest
from .grown_scoring import GrownScoring
from .modeling import DecodNERForSpanClassification
from .pipeline_io import PreparedDocument
from .prompting import EncodedPrompt
from .scored_document import ScoredDocument
from .spans import EncodedDocument
from .transfers import HostCopy, is_out_of_memory
from .weights import WeightsWatch

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

ACTIVATION_BYTES = 9 * 2**27  # of a pass on a GPU: 1.125 GiB, the default budget's measure
GPU_BUDGETS = (4096, 65536)  # the fewest and the most forest nodes per pass by default
GPU_BUDGET_STEP = 512
CPU_BUDGET = 4096
SMALLEST_BUDGET = 64
KEPT_PREFIXES = 8  # at least, whatever their size
KEPT_PREFIX_BYTES = 2**30  # more than KEPT_PREFIXES are kept up to this size


@dataclass(frozen=True)
class _Run:
    """Label logits of consecutive windows, on their way from the device.

    Attributes:
        pieces: which of the run's S spans, and their logits [K, L + 1].
        cu_spans: int64 [B + 1], where each window's spans start.
        num_columns: L + 1.
    """

    pieces: list[tuple[IntArray, HostCopy]]
    cu_spans: IntArray
    num_columns: int

    def logits(self) -> list[FloatingArray]:
        """Waits for them; [spans of the window, L + 1] each."""
        arrays = [download.array() for _, download in self.pieces]
        dtype = arrays[0].dtype if arrays else np.dtype(np.float32)
        logits = np.full((int(self.cu_spans[-1]), self.num_columns), np.nan, dtype)
        for (spans, _), values in zip(self.pieces, arrays, strict=True):
            logits[spans] = values  # a long document's spans come in the order of their paths, even in one piece
        return [logits[first:last] for first, last in pairwise(self.cu_spans.tolist())]


@dataclass(frozen=True)
class PendingScores:
    """The scores of documents whose passes were launched.

    Attributes:
        documents: B documents.
        shards: per prompt the runs of the documents' windows.
    """

    documents: Sequence[PreparedDocument]
    shards: Sequence[Sequence[_Run]]

    def wait(self) -> list[ScoredDocument]:
        """Returns the documents with their label logits, once these have arrived."""
        shards = [[logits for run in runs for logits in run.logits()] for runs in self.shards]
        windows = (merge_shards(parts) if len(parts) > 1 else parts[0] for parts in zip(*shards, strict=True))
        return [
            ScoredDocument(document, np.concatenate(list(islice(windows, len(document.windows)))))
            for document in self.documents
        ]


class DocumentScorer:
    """The scoring stage: runs documents through a model, and keeps the prefixes that it has encoded.

    Attributes:
        token_budget: forest nodes per pass.
        weights_version: grows whenever prefixes became stale.
    """

    def __init__(self, model: DecodNERForSpanClassification, token_budget: int | None = None) -> None:
        """Takes `token_budget` forest nodes per pass, or a default for the model and its device."""
        self.model = model
        budget = token_budget or default_budget(model)
        self.token_budget = min(budget, model.node_limit or budget)
        self._prefixes: OrderedDict[bytes, DualBufferCache] = OrderedDict()
        self._watch = WeightsWatch(model.backbone)
        self.weights_version = 0
        self._lock = RLock()  # prefixes are shared, and grow while a long document is scored

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles without the prefixes kept and their lock."""
        return type(self), (self.model, self.token_budget)

    def score(self, documents: Sequence[PreparedDocument]) -> list[ScoredDocument]:
        """Scores documents of one label set; grows their spans where they ask for it."""
        if documents[0].growth_threshold is not None:
            return self.growing(documents[0]).score(documents)
        return self.launch(documents).wait()

    def growing(self, first: PreparedDocument) -> GrownScoring:
        """Returns what scores documents like `first`, whose spans are grown, as they come."""
        return GrownScoring(self, first)

    def launch(self, documents: Sequence[PreparedDocument]) -> PendingScores:
        """Starts scoring every candidate of B documents of one label set against each of its prompts.

        Raises:
            ValueError: what the model refuses (a document beyond its positions, say).
        """
        windows = [window for document in documents for window in document.windows]
        prompts = documents[0].prompts
        keys = {prompt.prefix_token_ids.tobytes() for prompt in prompts}
        assert all(window.wider is None for window in windows), "candidates that are not listed would not be scored"
        with self.in_use():
            return PendingScores(documents, [self._score_windows(prompt, windows, keys) for prompt in prompts])

    def kept_prefixes(self) -> list[DualBufferCache]:
        """Returns the prefixes that are kept, those used last at the end."""
        return list(self._prefixes.values())

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps other threads from the prefixes, of which stale ones are dropped, and makes the device current."""
        device = self.model.device
        with self._lock, torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            if self._watch.changed():
                self._prefixes.clear()
                self.weights_version += 1
            yield

    def prefixes(self, prompts: Sequence[EncodedPrompt]) -> list[DualBufferCache]:
        """Returns the prompts' prefixes, encoded now or before; only to be called and read within `in_use`."""
        needed = {prompt.prefix_token_ids.tobytes() for prompt in prompts}
        return [self._prefix(prompt, needed) for prompt in prompts]

    def _prefix(self, prompt: EncodedPrompt, needed: set[bytes]) -> DualBufferCache:
        """Returns the prompt's prefix, encoded now or before; those of the other `needed` prompts are not dropped."""
        key = prompt.prefix_token_ids.tobytes()
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
            return self._prefixes[key]
        cache = self._prefixes[key] = self.model.encode_prefix(prompt.prefix_token_ids)
        held = sum(map(_prefix_bytes, self._prefixes.values()))
        for other in [*(other for other in self._prefixes if other not in needed), key]:
            if len(self._prefixes) <= KEPT_PREFIXES or held <= KEPT_PREFIX_BYTES:
                break
            held -= _prefix_bytes(self._prefixes.pop(other))
        return cache

    def _score_windows(
        self, prompt: EncodedPrompt, windows: Sequence[EncodedDocument], needed: set[bytes]
    ) -> list[_Run]:
        sizes = [window.max_nodes for window in windows]
        return self._in_runs(sizes, lambda run: self._score_run(prompt, windows[run.start : run.stop], needed))

    def _in_runs(self, sizes: Sequence[int], score: Callable[[range], Result]) -> list[Result]:
        """Scores items of these sizes in runs that fit the budget, which is halved where memory runs out."""
        results: list[Result] = []
        start = 0
        while start < len(sizes):
            run = next(packed_runs(sizes[start:], self.token_budget))
            try:
                results.append(score(range(start, start + len(run))))
                start += len(run)
            except RuntimeError as error:  # of which torch.OutOfMemoryError is one; the CPU's allocator has no other
                self.halve_budget(error)
        return results

    def encode_chain(self, chain: IntArray, cache: DualBufferCache) -> None:
        """Grows a prefix by a document beyond the budget, in several passes."""
        for start in range(0, len(chain), self.token_budget):
            self.model.encode_prefix(chain[start : start + self.token_budget], cache)

    def kept_share(self, caches: Sequence[DualBufferCache]) -> float:
        """Returns the part that a row's keys and values have of all memory that it takes in passes that keep them.

        Args:
            caches: the prefixes of all prompts that it is scored against.
        """
        buffers = (buffer for cache in caches for layer in cache.layers for buffer in layer.calls)
        parts = [part for buffer in buffers for part in (buffer.keys, buffer.values) if part is not None]
        kept = float(sum(part.nbytes // part.shape[2] for part in parts))
        return kept / (kept + activation_bytes_per_node(self.model))

    def halve_budget(self, error: RuntimeError) -> None:
        """Halves the budget where memory ran out, for the pass to be repeated; raises any other error."""
        if not is_out_of_memory(error) or self.token_budget <= SMALLEST_BUDGET:
            raise error
        logger.warning(
            "Out of memory with %d tokens per pass: repeating the pass with %d. Nothing is lost; set token_budget "
            "lower to avoid this.",
            self.token_budget,
            self.token_budget // 2,
        )
        self.token_budget //= 2
        self._prefixes.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _score_run(self, prompt: EncodedPrompt, windows: Sequence[EncodedDocument], needed: set[bytes]) -> _Run:
        cu_spans = np.cumsum([0, *(window.candidates.num_spans for window in windows)])
        columns = len(prompt.symbol_token_ids)
        scored = [window for window in windows if window.candidates.num_spans]
        if not scored:
            return _Run([], cu_spans, columns)
        cache = self._prefix(prompt, needed)
        if len(windows) == 1 and windows[0].max_nodes > self.token_budget:
            return _Run(self._score_long(prompt, windows[0], cache), cu_spans, columns)
        chains, paths = zip(*((window.chain_token_ids, window.candidates.paths) for window in scored), strict=True)
        download = self._score_forest(prompt, cache, chains, paths)
        return _Run([(np.arange(cu_spans[-1]), download)], cu_spans, columns)

    def _score_long(
        self, prompt: EncodedPrompt, window: EncodedDocument, cache: DualBufferCache
    ) -> list[tuple[IntArray, HostCopy]]:
        """Grows the prefix by the window, scores its spans in several passes, and takes the window off again."""
        before = cache.prefix_length
        try:
            self.encode_chain(window.chain_token_ids, cache)
            return [
                (spans, self._score_forest(prompt, cache, [[]], [paths]))
                for spans, paths in _split_paths(window.candidates.paths, self.token_budget)
            ]
        finally:
            cache.crop(before - cache.prefix_length)

    def _score_forest(
        self,
        prompt: EncodedPrompt,
        cache: DualBufferCache,
        chains: Sequence[Sequence[int] | IntArray],
        paths: Sequence[SpanPaths],
    ) -> HostCopy:
        forest = build_forest(
            chains, paths, first_position=cache.prefix_length, cue_token_ids=prompt.cue_token_ids.tolist()
        )
        return HostCopy(self.model.score_forest(forest, prompt.symbol_token_ids, cache))


def default_budget(model: DecodNERForSpanClassification) -> int:
    """Returns the forest nodes per pass: on a GPU as many as hold 1.125 GiB of MLP activations, 4,096 to 65,536."""
    if model.device.type != "cuda":
        return CPU_BUDGET
    least, most = GPU_BUDGETS
    nodes = ACTIVATION_BYTES // activation_bytes_per_node(model)
    return min(max(nodes // GPU_BUDGET_STEP * GPU_BUDGET_STEP, least), most)


def activation_bytes_per_node(model: DecodNERForSpanClassification) -> int:
    """Returns the bytes that a forest node takes in an MLP.

    It holds the states before, between and after its norm and sum, both inner products and their product.
    """
    config = model.backbone.config.get_text_config(decoder=True)
    hidden = model.get_input_embeddings().weight.shape[1]
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    widest = max(inner) if isinstance(inner, list | tuple) else inner  # some decoders have one for each layer
    return int(3 * model.dtype.itemsize * (hidden + widest))


def _prefix_bytes(cache: DualBufferCache) -> int:
    """Returns what the buffers of a prefix take."""
    buffers = (buffer for layer in cache.layers for buffer in layer.calls)
    return sum(part.nbytes for buffer in buffers for part in (buffer.keys, buffer.values) if part is not None)


def _split_paths(paths: SpanPaths, budget: int) -> Iterator[tuple[IntArray, SpanPaths]]:
    """Cuts one document's paths into runs of at most `budget` tokens, or a single longer path.

    Yields:
        The indices [K] of the spans on a run's paths, in order of the paths, and the run.
    """
    order = np.argsort(paths.span_path, kind="stable")
    ordered, bounds = paths.span_path[order], paths.cu_seqlens
    for run in packed_runs(np.diff(bounds).tolist(), budget):
        spans = order[np.searchsorted(ordered, run.start) : np.searchsorted(ordered, run.stop)]
        if len(spans):
            yield (
                spans,
                SpanPaths(
                    token_ids=paths.token_ids[bounds[run.start] : bounds[run.stop]],
                    cu_seqlens=bounds[run.start : run.stop + 1] - bounds[run.start],
                    span_path=paths.span_path[spans] - run.start,
                    span_length=paths.span_length[spans],
                ),
            )
