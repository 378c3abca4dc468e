"""Times the ways to score all spans of one document, rung by rung, against the floor of the hardware.

In: shapes of model and document by flags (presets: tiny, llama-1b, llama-8b); weights are random, nothing is
downloaded. Out: a table with ratios to the floor and to the strongest baseline, each rung's largest error against the
same weights in higher precision, and a last line of JSON. Two floors: the FLOPs at the matrix product rate measured in
the same run, and the decoder's own matrix products timed alone; both with the FLOPs of attention over the prefix at
that rate.
Rungs that would take long are run on a sample of their batches and scaled; the table says from how many spans.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from unittest import mock

import numpy as np
import torch
from bench_forest import random_document
from bench_setting import (
    DTYPES,
    clock,
    figures_of,
    linear_weights,
    make_parser,
    peak_rate,
    products_seconds,
    read_flags,
)
from ladder_baselines import Prefilled, Rows
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from decodner_hf import DecodNERForSpanClassification, UniversalDecoder, build_forest
from decodner_hf.core import attention
from decodner_hf.core.arrays import ramp_of
from decodner_hf.core.forest import rows_forest
from decodner_hf.core.growth import GrowingForest, GrownRows
from decodner_hf.core.kept_rows import KeptRows
from decodner_hf.core.label_head import row_logits
from decodner_hf.core.transformers_private import cache_keyword

SHAPE = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "tie_word_embeddings"),
)
MODELS = {
    "tiny": (256, 1024, 4, 8, 4, 32, 4096, True),
    "llama-1b": (2048, 8192, 16, 32, 8, 64, 128256, True),
    "llama-8b": (4096, 14336, 32, 32, 8, 128, 128256, False),
}
DOCUMENTS = {"tiny": {"prefix": 128, "words": 60}, "llama-1b": {}, "llama-8b": {}}
LABELS = 5
GOES_ON = 0.03  # of the spans of a round: some 1.03 span tokens a text token, as of a model fine-tuned on CoNLL-2003
STREAMED = 10  # passes in a row
SENTENCE_WORDS = 13
ORACLE_ROWS = 64  # rows of a batch in higher precision


@dataclass
class Rung:
    """One line of the table; times in milliseconds, for all spans of the document."""

    name: str
    host_ms: float
    device_ms: float
    rows_tokens: int
    from_spans: int
    difference: float
    error: float
    peak_bytes: int | None
    stream_ms: float | None = None


class Ladder:
    """The model, the document and what every rung is measured with."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Makes a random model and a random document of the shapes asked for."""
        self.options, self.device = options, torch.device(options.device)
        torch.manual_seed(0)
        config = LlamaConfig(**dict(zip(SHAPE, MODELS[options.preset], strict=True)), max_position_embeddings=131072)
        with self.device:
            self.native = LlamaForCausalLM._from_config(
                config, dtype=DTYPES[options.dtype], attn_implementation="sdpa"
            ).eval()
        self.model = UniversalDecoder.from_backbone(self.native)
        generator = np.random.default_rng(0)
        shape = (options.words, options.width, options.tokens_per_word)
        paths = random_document(*shape, generator)
        vocabulary = config.vocab_size
        self.paths = replace(paths, token_ids=paths.token_ids % (vocabulary - LABELS - 1))
        self.prefix = torch.from_numpy(generator.integers(1, vocabulary, options.prefix))
        self.symbols = torch.arange(vocabulary - LABELS, vocabulary)
        self.num_spans = len(paths.span_path)
        self.rows, self.chains = Rows.of(self.paths, True), Rows.of(self.paths, False)
        began = time.perf_counter()
        self.forest = build_forest([[]], [self.paths], first_position=options.prefix)
        self.build_ms = 1e3 * (time.perf_counter() - began)
        self.cache = self.model.encode_prefix(self.prefix)
        self.prefilled = Prefilled.of(self.native, self.prefix)
        self.reference: dict[int, torch.Tensor] = {}
        self.compile_s: float | None = None
        self.sentence_ms: dict[str, float] = {}
        self.sentence_nodes = 0
        self.exact = self.exact_logits()

    def exact_logits(self) -> dict[int, torch.Tensor]:
        """Returns all label logits by the same weights in higher precision, through the decoder's own cache."""
        higher = torch.float64 if self.options.dtype == "float32" else torch.float32
        prefilled = Prefilled.of(copy.deepcopy(self.native).to(higher), self.prefix)
        return {
            span: row
            for batch in self.chains.batches(ORACLE_ROWS, None)
            for span, row in zip(batch.spans.tolist(), self.expanded(batch, False, prefilled).double(), strict=True)
        }

    def label_head(
        self, states: torch.Tensor, batch: Rows, shift: int = 0, native: PreTrainedModel | None = None
    ) -> torch.Tensor:
        """Label logits [S, L] at the span ends of a batch of hidden states."""
        ends = states[batch.end_row.to(self.device), batch.end_column.to(self.device) + shift]
        return row_logits(native or self.native, ends, self.symbols)

    def re_encode(self, batch: Rows) -> torch.Tensor:
        """Encodes prefix and span in every row."""
        prefix = self.prefix.expand(len(batch.token_ids), -1)
        ids = torch.cat([prefix, batch.token_ids], dim=1).to(self.device)
        states = self.native.model(input_ids=ids, use_cache=False).last_hidden_state
        return self.label_head(states, batch, len(self.prefix))

    def expanded(self, batch: Rows, full: bool, prefilled: Prefilled | None = None) -> torch.Tensor:
        """Returns the prefix's cache copied into every row, as plain transformers asks for."""
        prefilled = prefilled or self.prefilled
        inputs = {
            "input_ids": batch.token_ids.to(self.device),
            cache_keyword(prefilled.native): prefilled.cache(len(batch.token_ids)),
        }
        if full:
            logits = prefilled.native(**inputs).logits
            ends = logits[batch.end_row.to(self.device), batch.end_column.to(self.device)]
            return ends[:, self.symbols.to(self.device)]
        states = prefilled.native.model(**inputs).last_hidden_state
        return self.label_head(states, batch, native=prefilled.native)

    def padded(self, batch: Rows, full: bool) -> torch.Tensor:
        """Scores by the original design: padded rows over the shared prefix, through this library."""
        if full:
            logits = self.model.forward_spans(batch.token_ids, None, self.cache)
            ends = logits[batch.end_row.to(self.device), batch.end_column.to(self.device)]
            return ends[:, self.symbols.to(self.device)]
        forest = rows_forest(batch.token_ids, self.options.prefix)
        nodes = batch.end_row * batch.token_ids.shape[1] + batch.end_column
        return self.model.score_forest(replace(forest, span_nodes=nodes), self.symbols, self.cache)

    def measure(self, name: str, batches: list[Rows], score: Callable[[Rows], torch.Tensor], share: int) -> Rung:
        """Times `score` over `batches` and scales to all `share` rows; keeps or checks the reference logits."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        results = [(batch.spans.tolist(), score(batch).float()) for batch in batches]
        found = {span: row for spans, rows in results for span, row in zip(spans, rows, strict=True)}
        if not self.reference:
            self.reference = found
        difference = _largest_difference(found, self.reference)
        error = _largest_difference(found, self.exact)
        repeats = self.options.repeats if len(found) == self.num_spans else max(1, self.options.repeats // 3)
        host, device = (
            1e3 * seconds for seconds in clock(lambda: [score(batch) for batch in batches], repeats, self.device)
        )
        scale = share / sum(len(batch.token_ids) for batch in batches)
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        tokens = round(scale * sum(batch.token_ids.numel() for batch in batches))
        return Rung(name, scale * host, scale * device, tokens, len(found), difference, error, peak)

    def floors(self) -> dict[str, float]:
        """Returns the two floors in milliseconds, and what they are made of."""
        config, nodes = self.native.config, self.forest.num_nodes
        weights = linear_weights(self.native.model)
        head = self.native.lm_head.weight[self.symbols.to(self.device)]
        products = 2 * nodes * sum(weight.numel() for weight in weights) + 2 * self.num_spans * head.numel()
        heads = config.num_hidden_layers * config.num_attention_heads * config.head_dim
        attention = 4 * heads * nodes * self.options.prefix
        rate = peak_rate(self.device, self.native.dtype, 3 * self.options.repeats)
        rows = [nodes] * len(weights) + [self.num_spans]
        alone = 1e3 * products_seconds([*weights, head], rows, self.options.repeats)
        return {
            "peak_tflops": rate / 1e12,
            "products_ms": alone,
            "prefix_attention_ms": 1e3 * attention / rate,
            "flop_floor_ms": 1e3 * (products + attention) / rate,
            "floor_ms": alone + 1e3 * attention / rate,
        }

    @torch.no_grad()
    def climb(self) -> list[Rung]:
        """Times all rungs, the reference first."""
        options, rows, chains = self.options, self.rows, self.chains
        most, spans, starts = options.max_batches, self.num_spans, len(self.chains.lengths)
        batches = rows.batches(options.batch_size, most)
        untrimmed = rows.batches(options.batch_size, most, trim=False)
        whole = Rows(rows.token_ids[:0], rows.lengths, rows.end_row, rows.end_column, torch.arange(spans))
        rungs = [
            self.measure(
                "re-encode prefix + span", rows.batches(options.reencode_batch_size, most), self.re_encode, spans
            ),
            self.measure("HF cache, a row per span, full", batches, lambda b: self.expanded(b, True), spans),
            self.measure("HF cache, a row per span, labels", batches, lambda b: self.expanded(b, False), spans),
            self.measure(
                "HF cache, a row per word start, labels",
                chains.batches(options.batch_size, None),
                lambda b: self.expanded(b, False),
                starts,
            ),
            self.measure("padded design, full", untrimmed, lambda b: self.padded(b, True), spans),
            self.measure("padded design, labels", untrimmed, lambda b: self.padded(b, False), spans),
        ]
        rungs[0].rows_tokens += spans * options.prefix
        cuda = self.device.type == "cuda" and attention.HAS_KERNEL
        if cuda:
            with mock.patch.object(attention, "forest_attention_triton", attention.forest_attention):
                rungs.append(self.measure_forest("forest, torch attention", whole, self.model))
        rungs.append(self.measure_forest("forest", whole, self.model))
        rungs.append(self.measure_grown("grown, all rounds", self.model))
        self.sentence_ms["not compiled"] = self.time_sentence(self.model)
        if cuda:
            compiled = DecodNERForSpanClassification.from_backbone(self.native)
            began = time.perf_counter()
            compiled.compile_forest()
            self.compile_s = time.perf_counter() - began
            graphs = compiled.graphs
            if graphs is not None and self.forest.num_nodes <= graphs.most_nodes:
                rungs.append(self.measure_forest("forest, compiled, CUDA graph", whole, compiled))
            self.sentence_ms["compiled, CUDA graph"] = self.time_sentence(compiled)
            compiled.graphs = None
            rungs.append(self.measure_forest("forest, compiled", whole, compiled))
            rungs.append(self.measure_grown("grown, all rounds, compiled", compiled))
            self.sentence_ms["compiled"] = self.time_sentence(compiled)
        return rungs

    def time_sentence(self, model: DecodNERForSpanClassification) -> float:
        """Milliseconds of a pass over one sentence, by the host's clock."""
        paths = random_document(
            SENTENCE_WORDS, self.options.width, self.options.tokens_per_word, np.random.default_rng(1)
        )
        paths = replace(paths, token_ids=paths.token_ids % len(self.native.lm_head.weight))
        cache = model.encode_prefix(self.prefix)
        forest = build_forest([[]], [paths], first_position=self.options.prefix)
        self.sentence_nodes = forest.num_nodes
        for _ in range(3):  # the second pass of a size is captured
            model.score_forest(forest, self.symbols, cache)
        repeats = 3 * self.options.repeats
        return 1e3 * clock(lambda: model.score_forest(forest, self.symbols, cache), repeats, self.device)[0]

    def measure_forest(self, name: str, whole: Rows, model: DecodNERForSpanClassification) -> Rung:
        """Times the forest, all spans in one pass; alone, and as one of several that the host does not wait for."""
        cache = model.encode_prefix(self.prefix)

        def score(_: Rows) -> torch.Tensor:
            return model.score_forest(self.forest, self.symbols, cache)

        score(whole)
        rung = self.measure(name, [replace(whole, token_ids=torch.zeros(1, 1))], score, 1)
        stream = clock(lambda: [score(whole) for _ in range(STREAMED)], max(1, self.options.repeats // 3), self.device)
        return replace(rung, rows_tokens=self.forest.num_nodes, stream_ms=1e3 * stream[0] / STREAMED)

    def grown_rounds(self) -> list[GrownRows]:
        """The rows of all rounds of growth, in which a fixed part of the spans goes on, by chance."""
        place = self.paths.span_path
        width = ramp_of(np.bincount(place)) + 1
        forest = GrowingForest(
            [np.empty(0, np.int64)], [self.paths], [place], [width], first_position=self.options.prefix
        )
        generator = np.random.default_rng(2)
        rounds, parts = [], list(forest.first_round())
        while parts:
            rounds += parts
            parts = list(forest.next_round(generator.random(forest.num_spans) < GOES_ON))
        return rounds

    def measure_grown(self, name: str, model: DecodNERForSpanClassification) -> Rung:
        """Times the rounds of growth, each a pass over the rows that the ones before keep."""
        cache, rounds = model.encode_prefix(self.prefix), self.grown_rounds()
        spans = torch.from_numpy(np.concatenate([rows.spans for rows in rounds]))

        def score(_: Rows) -> torch.Tensor:
            kept_rows = KeptRows()
            return torch.cat([model.score_rows(rows, self.symbols, cache, kept_rows) for rows in rounds])

        batch = Rows(torch.zeros(1, 1), self.rows.lengths, self.rows.end_row, self.rows.end_column, spans)
        score(batch)
        rung = self.measure(name, [batch], score, 1)
        nodes = sum(len(rows.token_ids) for rows in rounds)
        return replace(rung, rows_tokens=nodes, from_spans=self.num_spans)  # the others are not scored, nor estimated


def _largest_difference(found: dict[int, torch.Tensor], expected: dict[int, torch.Tensor]) -> float:
    """Returns the largest absolute difference of label logits over the spans that both hold; NaN without any."""
    both = sorted(found.keys() & expected.keys())
    if not both:
        return float("nan")
    apart = torch.stack([found[span] for span in both]) - torch.stack([expected[span] for span in both])
    return float(apart.abs().max())


def show(ladder: Ladder, rungs: list[Rung], floors: dict[str, float]) -> None:
    """Prints the configuration, the table, and the JSON line."""
    options, figures = ladder.options, figures_of(ladder.options)
    baseline = min(rung.host_ms for rung in rungs if rung.name.startswith(("re-encode", "HF")))
    versions = f"torch {figures['torch']}, transformers {figures['transformers']}"
    print(f"{options.preset}, {options.dtype}, random weights; {figures['device_name']}; {versions}")
    print(
        f"prefix {options.prefix}, {options.words} words, width {options.width}: {ladder.num_spans} spans, "
        f"{int(ladder.rows.lengths.sum())} span tokens, {ladder.rows.token_ids.numel()} padded, "
        f"{ladder.forest.num_nodes} nodes (built in {ladder.build_ms:.2f} ms)"
    )
    print(
        f"floor {floors['floor_ms']:.2f} ms (products alone {floors['products_ms']:.2f} + prefix attention "
        f"{floors['prefix_attention_ms']:.2f}); FLOP floor {floors['flop_floor_ms']:.2f} ms at the measured "
        f"{floors['peak_tflops']:.3g} TFLOP/s; strongest baseline {baseline:.2f} ms"
    )
    largest = max(float(row.abs().max()) for row in ladder.reference.values())
    print(
        f"error: largest of label logits against the same weights in higher precision; largest |logit| {largest:.3g}; "
        f"streamed: {STREAMED} passes in a row"
    )
    if ladder.compile_s is not None:
        print(f"compiled once, in {ladder.compile_s:.1f} s")
    sentence = ", ".join(f"{name} {milliseconds:.2f} ms" for name, milliseconds in ladder.sentence_ms.items())
    print(f"a pass over a sentence of {SENTENCE_WORDS} words, {ladder.sentence_nodes} nodes: {sentence}")
    print(
        f"{'':38s}{'host ms':>10s}{'device ms':>11s}{'x floor':>9s}{'streamed':>9s}{'x floor':>9s}{'speed-up':>9s}"
        f"{'tokens':>9s}{'error':>9s}  peak"
    )
    for rung in rungs:
        note = "" if rung.from_spans == ladder.num_spans else f"  extrapolated from {rung.from_spans} spans"
        peak = "" if rung.peak_bytes is None else f"{rung.peak_bytes / 2**30:.2f} GiB"
        streamed = f"{'':18s}"
        if rung.stream_ms is not None:
            streamed = f"{rung.stream_ms:9.2f}{rung.stream_ms / floors['floor_ms']:9.2f}"
        alone = f"{rung.host_ms:10.2f}{rung.device_ms:11.2f}{rung.host_ms / floors['floor_ms']:9.2f}"
        print(
            f"{rung.name:38s}{alone}{streamed}{baseline / rung.host_ms:9.2f}{rung.rows_tokens:9d}"
            f"{rung.error:9.1e}  {peak}{note}"
        )
    figures |= floors | {"baseline_ms": baseline}
    figures |= {"spans": ladder.num_spans, "nodes": ladder.forest.num_nodes, "build_ms": ladder.build_ms}
    figures |= {"sentence_ms": ladder.sentence_ms, "sentence_nodes": ladder.sentence_nodes}
    figures["compile_s"] = ladder.compile_s
    print(json.dumps(figures | {"largest_logit": largest, "rungs": [asdict(rung) for rung in rungs]}))


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, measures and prints."""
    parser = make_parser(__doc__, MODELS)
    parser.add_argument("--prefix", type=int, help="prefix tokens; 512, tiny: 128")
    parser.add_argument("--words", type=int, help="words of the document; 350, tiny: 60")
    parser.add_argument("--width", type=int, default=8, help="longest span in words")
    parser.add_argument("--tokens-per-word", type=float, default=1.4)
    parser.add_argument("--batch-size", type=int, default=256, help="rows a batch")
    parser.add_argument("--reencode-batch-size", type=int, default=64, help="rows a batch when re-encoding")
    parser.add_argument("--max-batches", type=int, default=4, help="batches run of the expensive rungs")
    parser.add_argument("--repeats", type=int, default=9)
    options = read_flags(parser, arguments)
    document = {"prefix": 512, "words": 350} | DOCUMENTS[options.preset]
    options.prefix = document["prefix"] if options.prefix is None else options.prefix
    options.words = document["words"] if options.words is None else options.words
    with torch.no_grad():
        ladder = Ladder(options)
        rungs = ladder.climb()
        show(ladder, rungs, ladder.floors())


if __name__ == "__main__":
    main()
