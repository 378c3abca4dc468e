"""Scores encoded documents with a model, in packed passes of at most a budget of tokens.

In: encoded prompts and documents. Out: label logits of every candidate span, document by document.
Short documents share a pass; a document beyond the budget is kept as a prefix and its spans take several passes. The
result does not depend on the packing. Passes are launched without waiting for their results, so that the host can
prepare the next ones and decode the last ones meanwhile. Where memory runs out, the budget is halved and the pass
repeated.
Knows nothing of text, thresholds or entities.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .cache import DualBufferCache
from .forest import SpanPaths, build_forest
from .modeling import DecodNERForSpanClassification
from .spans import EncodedDocument
from .transfers import HostCopy, is_out_of_memory
from .weights import WeightsWatch

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.floating[Any]]

logger = logging.getLogger(__name__)

ACTIVATION_BYTES = 9 * 2**27  # of a pass on a GPU: 1.125 GiB, the default budget's measure
GPU_BUDGETS = (4096, 65536)  # the least and the most forest nodes a pass by default
GPU_BUDGET_STEP = 512
CPU_BUDGET = 4096
SMALLEST_BUDGET = 64
KEPT_PREFIXES = 8


@dataclass(frozen=True)
class EncodedPrompt:
    """The part of the prompt that documents share, for one set of labels.

    Attributes:
        prefix_token_ids: int64 [P].
        symbol_token_ids: int64 [L + 1], the none label's first.
        cue_token_ids: int64 [n], what follows every span.
    """

    prefix_token_ids: IntArray
    symbol_token_ids: IntArray
    cue_token_ids: IntArray


@dataclass(frozen=True)
class ScoredRun:
    """Label logits of consecutive documents, on their way from the device.

    Attributes:
        pieces: which of the run's S spans, and their logits [K, L + 1].
        cu_spans: int64 [B + 1], where each document's spans start.
        num_columns: L + 1.
    """

    pieces: list[tuple[IntArray, HostCopy]]
    cu_spans: IntArray
    num_columns: int

    def logits(self) -> list[FloatArray]:
        """Waits for them; float32 or float64 [spans of the document, L + 1] each."""
        arrays = [download.array() for _, download in self.pieces]
        dtype = arrays[0].dtype if arrays else np.dtype(np.float32)
        logits = np.full((int(self.cu_spans[-1]), self.num_columns), np.nan, dtype)
        for (spans, _), values in zip(self.pieces, arrays, strict=True):
            logits[spans] = values  # a long document's spans come in the order of their paths, even in one piece
        return [logits[first:last] for first, last in pairwise(self.cu_spans.tolist())]


class DocumentScorer:
    """Runs documents through a model; keeps the prefixes it has encoded."""

    def __init__(self, model: DecodNERForSpanClassification, token_budget: int | None = None) -> None:
        """Takes `token_budget` forest nodes a pass, or a default for the model and its device."""
        self.model = model
        budget = token_budget or default_budget(model)
        self.token_budget = min(budget, model.node_limit or budget)
        self._prefixes: OrderedDict[bytes, DualBufferCache] = OrderedDict()
        self._watch = WeightsWatch(model.backbone)
        self._lock = RLock()  # prefixes are shared, and grow while a long document is scored

    def score(self, prompts: Sequence[EncodedPrompt], documents: Sequence[EncodedDocument]) -> list[list[FloatArray]]:
        """`launch`, and the results: per prompt and document the label logits, float32 [S, L + 1]."""
        return [collect(runs) for runs in self.launch(prompts, documents)]

    def launch(self, prompts: Sequence[EncodedPrompt], documents: Sequence[EncodedDocument]) -> list[list[ScoredRun]]:
        """Starts scoring documents against each prompt.

        Args:
            prompts: the shards of a label set; one where the labels fit a prompt.
            documents: B documents.

        Returns:
            Per prompt the runs of documents, whose label logits have the none label's first.

        Raises:
            ValueError: what the model refuses (a document beyond its positions, say).
        """
        with self._lock:
            if self._watch.changed():  # prefixes encoded before are stale
                self._prefixes.clear()
            return [self._score_documents(prompt, documents) for prompt in prompts]

    def runs(self, sizes: Sequence[int]) -> Iterator[range]:
        """Cuts items of these sizes, in nodes, into runs that fit the budget; a larger item is a run of its own."""
        start, filled = 0, 0
        for index, size in enumerate(sizes):
            if index > start and filled + size > self.token_budget:
                yield range(start, index)
                start, filled = index, 0
            filled += size
        if start < len(sizes):
            yield range(start, len(sizes))

    def prefix(self, prompt: EncodedPrompt) -> DualBufferCache:
        """The prompt's prefix, encoded now or before."""
        key = prompt.prefix_token_ids.tobytes()
        if key not in self._prefixes:
            self._prefixes[key] = self.model.encode_prefix(prompt.prefix_token_ids)
            if len(self._prefixes) > KEPT_PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    def _score_documents(self, prompt: EncodedPrompt, documents: Sequence[EncodedDocument]) -> list[ScoredRun]:
        runs: list[ScoredRun] = []
        scored = 0
        while scored < len(documents):
            left = documents[scored:]
            run = next(self.runs([num_nodes(document) for document in left]))
            try:
                runs.append(self._score_run(prompt, left[: len(run)]))
                scored += len(run)
            except RuntimeError as error:  # of which torch.OutOfMemoryError is one; the CPU's allocator has no other
                if not is_out_of_memory(error) or self.token_budget <= SMALLEST_BUDGET:
                    raise
                self._halve_budget()
        return runs

    def _halve_budget(self) -> None:
        logger.warning(
            "Out of memory with %d tokens a pass: repeating the pass with %d. Nothing is lost; set token_budget lower "
            "to avoid this.",
            self.token_budget,
            self.token_budget // 2,
        )
        self.token_budget //= 2
        self._prefixes.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _score_run(self, prompt: EncodedPrompt, documents: Sequence[EncodedDocument]) -> ScoredRun:
        cu_spans = np.cumsum([0, *(document.candidates.num_spans for document in documents)])
        columns = len(prompt.symbol_token_ids)
        if len(documents) == 1 and num_nodes(documents[0]) > self.token_budget:
            return ScoredRun(self._score_long(prompt, documents[0]), cu_spans, columns)
        scored = [document for document in documents if document.candidates.num_spans]
        if not scored:
            return ScoredRun([], cu_spans, columns)
        cache = self.prefix(prompt)
        chains, paths = zip(*((d.chain_token_ids, d.candidates.paths) for d in scored), strict=True)
        return ScoredRun(
            [(np.arange(cu_spans[-1]), self._score_forest(prompt, cache, chains, paths))], cu_spans, columns
        )

    def _score_long(self, prompt: EncodedPrompt, document: EncodedDocument) -> list[tuple[IntArray, HostCopy]]:
        """Grows the prefix by the document, scores its spans in several passes, and takes the document off again."""
        cache = self.prefix(prompt)
        before = cache.prefix_length
        try:
            for start in range(0, len(document.chain_token_ids), self.token_budget):
                self.model.encode_prefix(document.chain_token_ids[start : start + self.token_budget], cache)
            return [
                (spans, self._score_forest(prompt, cache, [[]], [paths]))
                for spans, paths in split_paths(document.candidates.paths, self.token_budget)
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
    """Forest nodes a pass: on a GPU as many as hold 1.125 GiB of activations in an MLP, from 4,096 to 65,536."""
    if model.device.type != "cuda":
        return CPU_BUDGET
    least, most = GPU_BUDGETS
    nodes = ACTIVATION_BYTES // activation_bytes_per_node(model)
    return min(max(nodes // GPU_BUDGET_STEP * GPU_BUDGET_STEP, least), most)


def activation_bytes_per_node(model: DecodNERForSpanClassification) -> int:
    """What a forest node takes in an MLP.

    It holds the states before, between and behind its norm and sum, both inner products and their product.
    """
    config = model.backbone.config.get_text_config(decoder=True)
    hidden = model.get_input_embeddings().weight.shape[1]
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    widest = max(inner) if isinstance(inner, list | tuple) else inner  # some decoders have one for each layer
    return int(3 * model.dtype.itemsize * (hidden + widest))


def collect(runs: Sequence[ScoredRun]) -> list[FloatArray]:
    """The label logits of all the runs' documents, once they have arrived."""
    return [logits for run in runs for logits in run.logits()]


def num_nodes(document: EncodedDocument) -> int:
    """The most forest nodes a document can have, its answer cues left out: nodes that spans share count repeatedly."""
    return len(document.chain_token_ids) + len(document.candidates.paths.token_ids)


def split_paths(paths: SpanPaths, token_budget: int) -> Iterator[tuple[IntArray, SpanPaths]]:
    """Cuts one document's paths into runs of at most `token_budget` tokens, or a single longer path.

    Yields:
        The indices [K] of the spans on a run's paths, and the run.
    """
    order = np.argsort(paths.span_path, kind="stable")
    ordered = paths.span_path[order]
    bounds, first, count = paths.cu_seqlens, 0, len(paths.cu_seqlens) - 1
    while first < count:
        fitting = int(np.searchsorted(bounds, bounds[first] + token_budget, side="right")) - 1
        last = max(fitting, first + 1)
        spans = order[np.searchsorted(ordered, first) : np.searchsorted(ordered, last)]
        if len(spans):
            yield (
                spans,
                SpanPaths(
                    token_ids=paths.token_ids[bounds[first] : bounds[last]],
                    cu_seqlens=bounds[first : last + 1] - bounds[first],
                    span_path=paths.span_path[spans] - first,
                    span_length=paths.span_length[spans],
                ),
            )
        first = last
