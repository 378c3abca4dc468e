"""Scores windows in rounds: first the shortest spans, then longer ones where every shorter prefix goes on.

In: a model, prompts with their cached prefixes, and encoded windows. Out: per window which of its candidate spans
exist, and their label logits. Scores of what is scored are those of exhaustive scoring.
Knows nothing of text, entities or label thresholds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import BoolArray, IntArray
from .cache import DualBufferCache
from .growth import GrowingForest, GrownRows, existing_spans, goes_on_probability
from .kept_rows import KeptRows
from .modeling import DecodNERForSpanClassification
from .prompting import EncodedPrompt
from .spans import EncodedDocument
from .transfers import HostCopy

LogitArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class GrownWindow:
    """What growing the spans of a window gives.

    Attributes:
        exists: bool [S], which of its candidates exist.
        label_logits: per prompt [K, L + 1], the none label's first, of the K candidates that exist.
    """

    exists: BoolArray
    label_logits: list[LogitArray]


def score_in_rounds(
    model: DecodNERForSpanClassification,
    prompts: Sequence[EncodedPrompt],
    caches: Sequence[DualBufferCache],
    windows: Sequence[EncodedDocument],
    *,
    threshold: float,
    all_exist: Sequence[bool],
    chains_cached: bool,
    max_nodes: int,
) -> list[GrownWindow]:
    """Scores the spans of B windows, all prompts in step: a span goes on if any prompt says so.

    Args:
        model: the model.
        prompts: the shards of the label set, with the continuation question's tokens.
        caches: per prompt its cached prefix.
        windows: B windows with candidates.
        threshold: probability from which on a span goes on.
        all_exist: per window whether all its candidates exist, as a caller's own spans do.
        chains_cached: whether the caches hold the chain of the only window, too.
        max_nodes: most nodes of one pass.

    Returns:
        Per window its existing candidates.
    """
    widths = [
        np.ones_like(w.candidates.start_word) if whole else w.candidates.end_word - w.candidates.start_word
        for w, whole in zip(windows, all_exist, strict=True)
    ]
    shards = [
        _Shard(model, prompt, cache, _forest(prompt, cache, windows, widths, chains_cached))
        for prompt, cache in zip(prompts, caches, strict=True)
    ]
    goes_on = np.zeros(shards[0].forest.num_spans, bool)
    scored = _run(shards, (shard.forest.first_round(max_nodes) for shard in shards), goes_on, threshold)
    while scored:
        scored = _run(shards, (shard.forest.next_round(goes_on, max_nodes) for shard in shards), goes_on, threshold)
    bounds = np.cumsum([0, *(window.candidates.num_spans for window in windows)])
    results = []
    for window, width, (first, last) in zip(windows, widths, pairwise(bounds.tolist()), strict=True):
        exists = existing_spans(window.candidates.start_word, width, goes_on[first:last])
        results.append(GrownWindow(exists, [shard.logits[first:last][exists] for shard in shards]))
    return results


class _Shard:
    """One prompt's share of the work: its forest, the rows that later rounds need, and its logits."""

    def __init__(
        self,
        model: DecodNERForSpanClassification,
        prompt: EncodedPrompt,
        cache: DualBufferCache,
        forest: GrowingForest,
    ) -> None:
        self.model, self.cache, self.forest = model, cache, forest
        self.tokens = np.append(prompt.symbol_token_ids, prompt.question_token_ids)
        self.kept_rows = KeptRows()
        self.logits: LogitArray = np.zeros((forest.num_spans, len(prompt.symbol_token_ids)), np.float32)

    def run(self, rows: GrownRows) -> NDArray[np.float64]:
        """Scores the rows' spans; the log-odds that each goes on, those of `rows.spans` and then of repeats."""
        if not len(rows.token_ids):
            found = np.empty((0, len(self.tokens)), self.logits.dtype)
        else:
            found = HostCopy(self.model.score_rows(rows, self.tokens, self.cache, self.kept_rows)).array()
        if found.dtype != self.logits.dtype:
            self.logits = self.logits.astype(found.dtype)
        self.logits[rows.spans] = found[:, :-2]
        again, source = rows.repeats
        self.logits[again] = self.logits[source]
        odds: NDArray[np.float64] = found[:, -2].astype(np.float64) - found[:, -1]
        return odds


def _run(shards: Sequence[_Shard], parts: Iterable[Iterable[GrownRows]], goes_on: BoolArray, threshold: float) -> bool:
    """Runs a round, part by part, and notes which of its spans go on; returns whether there were any."""
    any_rows = False
    for together in zip(*parts, strict=True):
        any_rows = True
        odds = np.max([shard.run(rows) for shard, rows in zip(shards, together, strict=True)], axis=0)
        rows = together[0]
        goes_on[rows.spans] = goes_on_probability(odds) >= threshold
        again, source = rows.repeats
        goes_on[again] = goes_on[source]
    return any_rows


def _forest(
    prompt: EncodedPrompt,
    cache: DualBufferCache,
    windows: Sequence[EncodedDocument],
    widths: Sequence[IntArray],
    chains_cached: bool,
) -> GrowingForest:
    nothing = np.empty(0, np.int64)
    return GrowingForest(
        [nothing if chains_cached else window.chain_token_ids for window in windows],
        [window.candidates.paths for window in windows],
        [window.candidates.start_word for window in windows],
        widths,
        first_position=cache.prefix_length,
        cue_token_ids=prompt.cue_token_ids.tolist(),
    )
