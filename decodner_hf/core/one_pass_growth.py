"""Grows the spans of a short document in a single pass, which one CUDA graph may serve.

In: a model, a window and its prompts. Out: what rounds would give: all listed candidates are scored, and those that do
not exist are dropped. Where a listed candidate of the largest width goes on, rounds are needed.
Knows nothing of text, entities, label thresholds or graphs.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .arrays import FloatingArray
from .cache import DualBufferCache
from .decoding import merge_shards
from .forest import build_forest
from .growth import existing_spans
from .modeling import DecodNERForSpanClassification
from .prompting import EncodedPrompt
from .round_scoring import GrownWindow, GrowthWindow
from .transfers import HostCopy


def grow_in_one_pass(
    model: DecodNERForSpanClassification,
    window: GrowthWindow,
    prompts: Sequence[EncodedPrompt],
    caches: Sequence[DualBufferCache],
    threshold: float,
) -> GrownWindow | None:
    """Scores all listed candidates of a window against each prompt, and applies the rule of growth.

    Args:
        model: the model.
        window: with at least one candidate.
        prompts: the shards of the label set, with the continuation question's tokens.
        caches: per prompt its cached prefix.
        threshold: probability from which on a span goes on.

    Returns:
        The candidates that exist; None where one may exist that is not listed.
    """
    candidates, width = window.encoded.candidates, window.widths()
    shards: list[FloatingArray] = []
    odds = np.full(candidates.num_spans, -np.inf)
    for prompt, cache in zip(prompts, caches, strict=True):
        forest = build_forest(
            [window.encoded.chain_token_ids],
            [candidates.paths],
            first_position=cache.prefix_length,
            cue_token_ids=prompt.cue_token_ids.tolist(),
        )
        tokens = np.append(prompt.symbol_token_ids, prompt.question_token_ids)
        logits = HostCopy(model.score_forest(forest, tokens, cache)).array()
        odds = np.maximum(odds, logits[:, -2].astype(np.float64) - logits[:, -1])
        shards.append(logits[:, :-2])
    goes_on = 1.0 / (1.0 + np.exp(-odds)) >= threshold
    exists = existing_spans(candidates.start_word, width, goes_on)
    wider = window.encoded.wider
    if wider is not None:
        last = len(window.encoded.word_starts)
        listed = wider.source.listed_words
        has_wider = np.ones(last, bool)
        has_wider[max(last - listed, 0) :] = False
        ends = exists & ~goes_on  # a prefix that exists and does not go on closes its place
        has_wider[candidates.start_word[ends]] = False
        if has_wider.any():
            return None
    scored = merge_shards(shards) if len(shards) > 1 else shards[0]
    existing = replace(window.encoded, candidates=candidates.select(exists), wider=None)
    return GrownWindow(existing, scored[exists], int((~exists).sum()))
