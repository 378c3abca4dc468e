"""Times the pipeline with growth against exhaustive scoring, in one run: raw text to entities, at several widths.

In: the shape of a model (random weights), numbers and lengths of documents. Out: documents a second; span tokens a
text token; passes and their sizes, with later rounds riding in the next documents' passes and without; the memory of
passes and kept rows against exhaustive scoring at the same budget; and the same as JSON in the last line.
Random weights answer the continuation question at random: the growth threshold is set so that as many span tokens a
text token are scored as by a trained model (conll: 1.03, open types: 1.36; said in the output).

On a GPU, the figures of docs/performance.md:
    python scripts/benchmarks/bench_growth.py --preset llama-1b --device cuda --compile
    python scripts/benchmarks/bench_growth.py --preset qwen-0.5b --device cuda --compile
    python scripts/benchmarks/bench_growth.py --preset smollm2-135m --device cuda --compile
    (each once more with --rate open)
On a CPU:
    python scripts/benchmarks/bench_growth.py --preset default --threads 2 --sentences 200 --long-documents 4
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from bench_corpus import MODELS, make_pipeline, texts, train_tokenizer, word_list
from bench_setting import clock, figures_of, make_parser, read_flags
from growth_rate import TRAINED_RATES, Passes, counted_passes, growth_threshold, span_tokens, text_tokens

from decodner_hf import DecodNERPipeline
from decodner_hf.core.pass_queues import documents_by_pass
from decodner_hf.core.streaming import encoded_groups, read_groups

SAMPLE_WORDS = 400  # of which the threshold is set
EXHAUSTIVE, GROWN, ALONE = "exhaustive", "grown", "grown, no riding"


@dataclass(frozen=True)
class Line:
    """One way to score one corpus at one width; seconds are of the host's clock, from text to entities.

    Attributes:
        corpus: "sentences" or "long documents".
        way: exhaustive, grown, or grown with every group's rounds in passes of their own (scoring alone, encoded).
        width: longest span in words.
        documents: their number.
        seconds: of all of them, median.
        span_tokens: span tokens a text token.
        passes: number of span passes.
        nodes: of all passes.
        median_nodes: of a pass.
        pass_bytes: activations and kept rows of the largest pass, by count of tensor bytes.
        peak_bytes: of all of the GPU's memory, weights among it.
    """

    corpus: str
    way: str
    width: int
    documents: int
    seconds: float
    span_tokens: float
    passes: int
    nodes: int
    median_nodes: float
    pass_bytes: int
    peak_bytes: int | None


class GrowthBench:
    """The pipeline and what it is measured on."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Makes words, tokenizer, model and documents."""
        self.options, self.device = options, torch.device(options.device)
        generator = np.random.default_rng(0)
        words = word_list(generator, 3000)
        self.pipe: DecodNERPipeline = make_pipeline(options, train_tokenizer(words), continuation=True)
        self.corpora = {
            "sentences": texts(generator, words, options.sentences, options.sentence_words),
            "long documents": texts(generator, words, options.long_documents, options.long_words),
        }
        self.rates: list[dict[str, Any]] = []

    def lines(self) -> list[Line]:
        """Measures all corpora at all widths, each in every way."""
        lines = []
        for corpus, documents in self.corpora.items():
            sample = documents[: max(1, SAMPLE_WORDS * len(documents) // sum(len(text.split()) for text in documents))]
            for width in self.options.widths:
                threshold, rate = growth_threshold(self.pipe, sample, self.options.rate, max_span_words=width)
                self.rates.append({"corpus": corpus, "width": width, "threshold": threshold, "rate": rate})
                grown = {"max_span_words": width, "growth": True, "growth_threshold": threshold}
                lines.append(self.measure(corpus, EXHAUSTIVE, documents, max_span_words=width, growth=False))
                lines.append(self.measure(corpus, GROWN, documents, **grown))
                lines.append(self.measure(corpus, ALONE, documents, **grown))
        return lines

    def measure(self, corpus: str, way: str, documents: list[str], **choices: Any) -> Line:
        """Times one way to score documents."""
        run: Callable[[], Any] = lambda: list(self.pipe(iter(documents), **choices))  # noqa: E731
        settings = self.pipe.settings_for(choices)
        stream = self.pipe.stream(documents, settings)
        prepared = [d for group in encoded_groups(read_groups(documents, stream.read), stream.encode) for d in group]
        if way == ALONE:
            runs = list(documents_by_pass(prepared, self.pipe.scorer.token_budget))
            run = lambda: [self.pipe.scorer.score(part) for part in runs]  # noqa: E731
        run()  # the second pass of a size is captured
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with counted_passes(self.pipe) as passes:
            run()
        seconds = clock(run, self.options.repeats, self.device, warm=False)[0]
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        rate = span_tokens(passes, prepared, text_tokens(self.pipe, documents))
        sizes = (len(passes.nodes), passes.all_nodes, _median(passes), passes.largest_bytes)
        return Line(corpus, way, choices["max_span_words"], len(documents), seconds, rate, *sizes, peak)


def _median(passes: Passes) -> float:
    return float(statistics.median(passes.nodes))


def show(bench: GrowthBench, lines: list[Line]) -> None:
    """Prints the configuration, the table, and the JSON line."""
    options, figures = bench.options, figures_of(bench.options)
    print(
        f"{options.preset}, {options.dtype}, random weights; {figures['device_name']}; torch {figures['torch']}, "
        f"transformers {figures['transformers']}; {bench.pipe.scorer.token_budget} nodes a pass; the growth threshold "
        f"is set for {options.rate} span tokens a text token, as of a trained model"
    )
    print(
        f"{'':34s}{'width':>6s}{'documents/s':>12s}{'against':>9s}{'span tokens':>12s}{'passes':>8s}"
        f"{'median nodes':>13s}{'pass MiB':>10s}{'against':>9s}"
    )
    speedups = {}
    for line in lines:
        base = next(
            other for other in lines if (other.corpus, other.width, other.way) == (line.corpus, line.width, EXHAUSTIVE)
        )
        faster, memory = base.seconds / line.seconds, line.pass_bytes / base.pass_bytes
        if line.way == GROWN:
            speedups[f"{line.corpus}, width {line.width}"] = {"speedup": faster, "memory": memory}
        print(
            f"{line.corpus + ', ' + line.way:34s}{line.width:6d}{line.documents / line.seconds:12.1f}{faster:8.2f}x"
            f"{line.span_tokens:12.2f}{line.passes:8d}{line.median_nodes:13.0f}{line.pass_bytes / 2**20:10.1f}"
            f"{memory:8.2f}x"
        )
    print(json.dumps(figures | {"rates": bench.rates, "grown": speedups, "lines": [asdict(line) for line in lines]}))


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, measures and prints."""
    parser = make_parser(__doc__, MODELS)
    parser.add_argument("--sentences", type=int, help="short documents; 3453, tiny: 64")
    parser.add_argument("--sentence-words", type=int, default=13)
    parser.add_argument("--long-documents", type=int, help="long documents; 24, tiny: 2")
    parser.add_argument("--long-words", type=int, help="1400, tiny: 120")
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 8, 16, 32], help="longest spans in words")
    parser.add_argument("--rate", default="conll", help="span tokens a text token: conll, open, or a number")
    parser.add_argument("--token-budget", type=int, help="nodes a pass; the library's default if left out")
    parser.add_argument("--compile", action="store_true", help="compile the layers first")
    parser.add_argument("--threads", type=int, help="of the CPU; torch's default if left out")
    parser.add_argument("--repeats", type=int, default=3, help="runs after two first ones; their median counts")
    options = read_flags(parser, arguments)
    tiny = options.preset == "tiny"
    options.sentences = options.sentences or (64 if tiny else 3453)
    options.long_documents = options.long_documents or (2 if tiny else 24)
    options.long_words = options.long_words or (120 if tiny else 1400)
    options.rate = TRAINED_RATES.get(options.rate) or float(options.rate)
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = GrowthBench(options)
    show(bench, bench.lines())


if __name__ == "__main__":
    main()
