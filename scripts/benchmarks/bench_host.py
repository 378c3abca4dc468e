"""Times what the host does for a sentence, on one core: encoding, forests, rounds of growth, decoding.

In: sentences (labelled data, or random ones), numbers of documents a group and widths. Out: microseconds a sentence of
each stage, and the same as JSON in the last line. Two changes are measured against what they replace in the same run:
the cache of words' tokens against none, and listing wide candidates on demand against listing them all.
No model runs: label logits are random, and spans go on at a fixed rate.

    python scripts/benchmarks/bench_host.py
    python scripts/benchmarks/bench_host.py --sentences conll2003/test.jsonl
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench_corpus import LABELS, texts, word_list
from transformers import AutoTokenizer

from decodner_hf.core import piece_cache
from decodner_hf.core.arrays import packed_runs
from decodner_hf.core.decoding import decode_entities
from decodner_hf.core.document_encoder import LISTED_WORDS, DocumentEncoder
from decodner_hf.core.forest import build_forest
from decodner_hf.core.growth import GrowingForest
from decodner_hf.core.pipeline_io import Document, PreparedDocument, Settings
from decodner_hf.core.prompting import LabelPrompts, PromptTemplate
from decodner_hf.core.tokenization import private_tokenizer
from decodner_hf.data.examples import load_examples
from decodner_hf.default_model import default_model

GROUPS = (64, 256, 1024)
NODES = 16384  # of a pass
GOES_ON = 0.03  # of the spans of a round
SEED = 0


class HostBench:
    """The host's stages and the sentences."""

    def __init__(self, sentences: Sequence[str], repeats: int) -> None:
        """Makes the stages around the bundled model's tokenizer."""
        self.repeats = repeats
        tokenizer, template = private_tokenizer(AutoTokenizer.from_pretrained(default_model())), PromptTemplate()
        prompts = LabelPrompts(tokenizer, template)
        self.new_encoder: Callable[[], DocumentEncoder] = lambda: DocumentEncoder(tokenizer, template, prompts)
        labels = tuple((label, None) for label in LABELS)
        self.documents = [Document(text, labels) for text in sentences]

    def seconds(self, run: Callable[[], Any]) -> float:
        """The fastest of the repeats: what else the core does only adds to it."""
        times = []
        for _ in range(self.repeats):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        return min(times)

    def encode(
        self, encoder: DocumentEncoder, group: int, settings: Settings, listed_words: int | None
    ) -> list[PreparedDocument]:
        """Encodes all sentences, `group` at a time."""
        starts = range(0, len(self.documents), group)
        return [d for s in starts for d in encoder.encode(self.documents[s : s + group], settings, listed_words)]

    def encoding(self, width: int, group: int, *, grown: bool, cached: bool, listed_words: int | None) -> float:
        """Seconds of encoding all sentences; with the cache, after a first run as in a stream under way."""
        settings, encoder = Settings(max_span_words=width, growth=grown), self.new_encoder()
        with mock.patch.object(piece_cache, "MOST_KEPT", piece_cache.MOST_KEPT if cached else 0):
            self.encode(encoder, group, settings, listed_words)
            return self.seconds(lambda: self.encode(encoder, group, settings, listed_words))

    def forests(self, prepared: Sequence[PreparedDocument]) -> float:
        """Seconds of building the forests of all candidates."""
        return self.seconds(lambda: [self._forest(run) for run in self._runs(prepared, grown=False)])

    def rounds(self, prepared: Sequence[PreparedDocument]) -> float:
        """Seconds of the rows of all rounds."""
        return self.seconds(lambda: [self._rounds(run) for run in self._runs(prepared, grown=True)])

    def decoding(self, prepared: Sequence[PreparedDocument]) -> float:
        """Seconds of decoding random logits of all candidates."""
        parts = [document.document.candidates for document in prepared]
        names = ("start", "end", "start_word", "end_word")
        start, end, start_word, end_word = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        logits = np.random.default_rng(SEED).normal(0, 2, (len(start), len(LABELS) + 1))
        logits[:, 0] += 6  # most spans are none
        bounds = np.cumsum([0, *(part.num_spans for part in parts)])
        thresholds = [0.5] * len(LABELS)
        return self.seconds(
            lambda: decode_entities(start, end, start_word, end_word, logits, LABELS, thresholds, cu_spans=bounds)
        )

    def _runs(self, prepared: Sequence[PreparedDocument], *, grown: bool) -> list[Sequence[PreparedDocument]]:
        sizes = [document.document.budget_nodes(grown) for document in prepared]
        return [prepared[run.start : run.stop] for run in packed_runs(sizes, NODES)]

    def _forest(self, run: Sequence[PreparedDocument]) -> None:
        build_forest([d.document.chain_token_ids for d in run], [d.document.candidates.paths for d in run])

    def _rounds(self, run: Sequence[PreparedDocument]) -> None:
        encoded = [document.document for document in run]
        forest = GrowingForest(
            [document.chain_token_ids for document in encoded],
            [document.candidates.paths for document in encoded],
            [document.candidates.start_word for document in encoded],
            [document.candidates.end_word - document.candidates.start_word for document in encoded],
            wider=[document.wider for document in encoded],
        )
        generator, parts = np.random.default_rng(SEED), list(forest.first_round())
        while parts:
            parts = list(forest.next_round(generator.random(forest.num_spans) < GOES_ON))


def measure(bench: HostBench, widths: Sequence[int]) -> list[dict[str, Any]]:
    """Times every stage; a line has a name and microseconds a sentence."""
    lines: list[dict[str, Any]] = []
    scale = 1e6 / len(bench.documents)

    def note(name: str, seconds: float) -> None:
        lines.append({"name": name, "microseconds": scale * seconds})

    for group in GROUPS:
        for cached in (False, True):
            seconds = bench.encoding(8, group, grown=False, cached=cached, listed_words=None)
            note(f"encode, width 8, groups of {group}, {'with' if cached else 'without'} the cache", seconds)
    for width in widths:
        for listed_words in (None, LISTED_WORDS):
            seconds = bench.encoding(width, 256, grown=True, cached=True, listed_words=listed_words)
            note(f"encode, width {width}, {'grown, on demand' if listed_words else 'all candidates listed'}", seconds)
    encoder = bench.new_encoder()
    every = bench.encode(encoder, 256, Settings(max_span_words=8), None)
    note("forest of all candidates, width 8", bench.forests(every))
    note("decode all candidates, width 8", bench.decoding(every))
    for width in widths:
        some = bench.encode(encoder, 256, Settings(max_span_words=width, growth=True), LISTED_WORDS)
        note(f"rows of all rounds, width {width}", bench.rounds(some))
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=Path, help="labelled data (default: random sentences)")
    parser.add_argument("--count", type=int, default=3453, help="most sentences (default: 3453)")
    parser.add_argument("--words", type=int, default=13, help="of a random sentence (default: 13)")
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 32], help="(default: 8 32)")
    parser.add_argument("--repeats", type=int, default=5, help="of which the fastest counts (default: 5)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.sentences:
        sentences = [example.text for example in load_examples(options.sentences)][: options.count]
    else:
        generator = np.random.default_rng(SEED)
        sentences = texts(generator, word_list(generator, 3000), options.count, options.words)
    lines = measure(HostBench(sentences, options.repeats), options.widths)
    print(f"{len(sentences)} sentences, {sum(len(text.split()) for text in sentences)} words; one core")
    for line in lines:
        print(f"{line['name']:56s}{line['microseconds']:9.1f} us a sentence")
    print(json.dumps({"python": platform.python_version(), "sentences": len(sentences), "lines": lines}))


if __name__ == "__main__":
    main()
