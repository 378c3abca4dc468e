"""Times the building of token forests on one core: nodes per second.

In: numbers of documents, words, width and tokens a word by flags. Out: a line of figures and, last, one JSON line.
Documents are random token ids with a realistic share of repeated words; nothing is downloaded.
"""

import argparse
import json
import platform
import statistics
import time

import numpy as np
import torch

from decodner_hf import SpanPaths, TokenForest, build_forest

TARGET = 2_000_000  # nodes per second


def random_document(words: int, width: int, tokens_per_word: float, generator: np.random.Generator) -> SpanPaths:
    """One document's spans of 1 to `width` words; every word start has one path, its longest span."""
    sizes = 1 + generator.poisson(tokens_per_word - 1, words)
    token_ids = (generator.zipf(1.3, int(sizes.sum())) % 32000).astype(np.int64)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    last = np.minimum(np.arange(words) + width, words) - 1
    lengths = ends[last] - starts
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    source = np.repeat(starts - cu_seqlens[:-1], lengths) + np.arange(cu_seqlens[-1])
    counts = last - np.arange(words) + 1
    first = np.repeat(np.arange(words), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return SpanPaths(token_ids[source], cu_seqlens, first, ends[first + within] - starts[first])


def build_all(documents: list[SpanPaths], batch: int) -> list[TokenForest]:
    """Builds the forests of all documents, `batch` of them a forest; their chains are left out of the count."""
    forests = []
    for start in range(0, len(documents), batch):
        chosen = documents[start : start + batch]
        forests.append(build_forest([[]] * len(chosen), chosen))
    return forests


def main() -> None:
    """Parses the flags, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--words", type=int, default=30, help="words a document")
    parser.add_argument("--width", type=int, default=8, help="longest span in words")
    parser.add_argument("--tokens-per-word", type=float, default=1.4)
    parser.add_argument("--batch", type=int, default=64, help="documents a forest")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    shape = (options.words, options.width, options.tokens_per_word)
    documents = [random_document(*shape, generator) for _ in range(options.documents)]
    build_all(documents[:256], options.batch)
    seconds = []
    for _ in range(options.repeats):
        began = time.perf_counter()
        forests = build_all(documents, options.batch)
        seconds.append(time.perf_counter() - began)
    nodes, spans = (sum(getattr(forest, name) for forest in forests) for name in ("num_nodes", "num_spans"))
    median = statistics.median(seconds)
    print(f"{options.documents} documents of {options.words} words, width {options.width}, one core")
    print(f"{spans} spans, {nodes} nodes in {median:.2f} s: {nodes / median / 1e6:.2f} M nodes/s (target 2.00)")
    figures = vars(options) | {
        "nodes": nodes,
        "spans": spans,
        "seconds": seconds,
        "nodes_per_second": nodes / median,
        "target": TARGET,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
