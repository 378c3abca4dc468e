"""Counts the passes of a model, and sets how many spans of a model with random weights go on.

In: a pipeline whose model has the continuation question, and texts. Out: passes with their nodes and memory; the
growth threshold at which growing takes as many span tokens a text token as a trained model's does.
Knows nothing of clocks or tables.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from decodner_hf import DecodNERPipeline
from decodner_hf.core.pipeline_io import PreparedDocument
from decodner_hf.core.scoring import activation_bytes_per_node
from decodner_hf.core.tokenization import continuation_ids

TRAINED_RATES = {"conll": 1.03, "open": 1.36}  # span tokens a text token: fine-tuned on CoNLL-2003; open entity types
HALVINGS = 24


@dataclass
class Passes:
    """What a model's passes took.

    Attributes:
        nodes: of each span pass.
        chain_nodes: of documents that were kept as a prefix.
        largest_bytes: the most that activations and kept rows of one pass take, prefixes left out.
    """

    nodes: list[int] = field(default_factory=list)
    chain_nodes: int = 0
    largest_bytes: int = 0

    @property
    def all_nodes(self) -> int:
        """Nodes of all passes."""
        return sum(self.nodes) + self.chain_nodes


@contextmanager
def counted_passes(pipe: DecodNERPipeline) -> Iterator[Passes]:
    """Notes every pass of the pipeline's model as long as the context lasts."""
    model, passes = pipe.model, Passes()
    forest, rows, prefix = model.score_forest, model.score_rows, model.encode_prefix
    bytes_a_node = activation_bytes_per_node(model)

    def note(nodes: int, kept_bytes: int = 0) -> None:
        passes.nodes.append(nodes)
        passes.largest_bytes = max(passes.largest_bytes, nodes * bytes_a_node + kept_bytes)

    def score_forest(given: Any, *rest: Any) -> Any:
        note(given.num_nodes)
        return forest(given, *rest)

    def score_rows(given: Any, symbols: Any, cache: Any, kept_rows: Any) -> Any:
        logits = rows(given, symbols, cache, kept_rows)
        note(len(given.token_ids), kept_rows.nbytes)
        return logits

    def encode_prefix(token_ids: Any, cache: Any = None) -> Any:
        if cache is not None:
            passes.chain_nodes += len(token_ids)
        return prefix(token_ids, cache)

    model.score_forest, model.score_rows, model.encode_prefix = score_forest, score_rows, encode_prefix
    try:
        yield passes
    finally:
        del model.score_forest, model.score_rows, model.encode_prefix


def text_tokens(pipe: DecodNERPipeline, texts: Sequence[str]) -> int:
    """Tokens of the texts alone, without the head and tail that the prompt puts around each."""
    return sum(map(len, continuation_ids(pipe.tokenizer, texts)))


def span_tokens(passes: Passes, documents: Sequence[PreparedDocument], num_text_tokens: int) -> float:
    """Nodes below the documents, over the text's own tokens."""
    return (passes.all_nodes - sum(len(item.document.chain_token_ids) for item in documents)) / num_text_tokens


def growth_threshold(pipe: DecodNERPipeline, texts: Sequence[str], rate: float, **choices: Any) -> tuple[float, float]:
    """Finds the threshold at which growing the texts' spans takes about `rate` span tokens a text token.

    Returns:
        The threshold, and the rate that it gives for these texts.
    """
    num_tokens, best = text_tokens(pipe, texts), (float("inf"), 1.0, 0.0)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        threshold = (low + high) / 2
        settings = pipe.settings_for({"growth": True, "growth_threshold": threshold, **choices})
        read = pipe.stream([], settings).read
        documents: list[PreparedDocument] = pipe.encoder.encode([read(text, 0) for text in texts], settings)
        with counted_passes(pipe) as passes:
            pipe.scorer.score(documents)
        found = span_tokens(passes, documents, num_tokens)
        best = min(best, (abs(found - rate), threshold, found))
        low, high = (threshold, high) if found > rate else (low, threshold)
        if best[0] < 0.01 * rate:
            break
    return best[1], best[2]
