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
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from bench_forest import random_document
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from decodner_hf import DecodNERForSpanClassification, SpanPaths, attention_decodner, build_forest
from decodner_hf.forest_decodner import rows_forest
from decodner_hf.head_decodner import row_logits

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
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LABELS = 5
STREAMED = 10  # passes in a row
SENTENCE_WORDS = 13
ORACLE_ROWS = 64  # rows of a batch in higher precision


@dataclass(frozen=True)
class Rows:
    """Right-padded rows of tokens and where their spans end.

    Attributes:
        token_ids: int64 [R, L].
        lengths: int64 [R], tokens a row; rows are sorted by it.
        end_row: int64 [S], each span's row.
        end_column: int64 [S], column of each span's last token.
        spans: int64 [S], each span's number in the document.
    """

    token_ids: torch.Tensor
    lengths: torch.Tensor
    end_row: torch.Tensor
    end_column: torch.Tensor
    spans: torch.Tensor

    @classmethod
    def of(cls, paths: SpanPaths, one_row_a_span: bool) -> "Rows":
        """Rows of the document's paths (one a word start), or of its spans."""
        starts = paths.cu_seqlens[:-1][paths.span_path] if one_row_a_span else paths.cu_seqlens[:-1]
        lengths = paths.span_length if one_row_a_span else np.diff(paths.cu_seqlens)
        order = np.argsort(lengths, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        starts, lengths = starts[order], lengths[order]
        columns = np.arange(lengths.max())
        inside = columns < lengths[:, None]
        table = np.where(inside, paths.token_ids[np.where(inside, starts[:, None] + columns, 0)], 0)
        row = rank[np.arange(len(order))] if one_row_a_span else rank[paths.span_path]
        arrays = (table, lengths, row, paths.span_length - 1, np.arange(len(row)))
        return cls(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def batches(self, size: int, most: int | None, trim: bool = True) -> list["Rows"]:
        """Batches of up to `size` rows, at most `most` of them spread evenly; trimmed to their longest row."""
        starts = list(range(0, len(self.lengths), size))
        if most is not None and len(starts) > most:
            starts = [starts[index] for index in np.linspace(0, len(starts) - 1, most + 2)[1:-1].astype(int)]
        batches = []
        for start in starts:
            chosen = (self.end_row >= start) & (self.end_row < start + size)
            lengths = self.lengths[start : start + size]
            width = int(lengths.max()) if trim else self.token_ids.shape[1]
            table = self.token_ids[start : start + size, :width].contiguous()
            ends = (self.end_row[chosen] - start, self.end_column[chosen], self.spans[chosen])
            batches.append(Rows(table, lengths, *ends))
        return batches


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


@dataclass(frozen=True)
class Prefilled:
    """A plain decoder and what its own cache holds of the prefix: per layer keys and values [1, Hkv, P, D]."""

    native: PreTrainedModel
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, native: PreTrainedModel, prefix: torch.Tensor) -> "Prefilled":
        """Runs the prefix [P] once."""
        filled = DynamicCache(config=native.config)
        native(input_ids=prefix[None].to(native.device), past_key_values=filled, logits_to_keep=1)
        return cls(native, [(layer.keys, layer.values) for layer in filled.layers])

    def cache(self, rows: int) -> DynamicCache:
        """The prefix repeated for a batch."""
        cache = DynamicCache(config=self.native.config)
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
        return cache


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
        self.model = DecodNERForSpanClassification.from_backbone(self.native)
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
        """Every span's label logits by the same weights in higher precision, through the decoder's own cache."""
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
        """Prefix and span anew in every row."""
        prefix = self.prefix.expand(len(batch.token_ids), -1)
        ids = torch.cat([prefix, batch.token_ids], dim=1).to(self.device)
        states = self.native.model(input_ids=ids, use_cache=False).last_hidden_state
        return self.label_head(states, batch, len(self.prefix))

    def expanded(self, batch: Rows, full: bool, prefilled: Prefilled | None = None) -> torch.Tensor:
        """The prefix's cache copied into every row, as plain transformers asks for."""
        prefilled = prefilled or self.prefilled
        inputs = {
            "input_ids": batch.token_ids.to(self.device),
            "past_key_values": prefilled.cache(len(batch.token_ids)),
        }
        if full:
            logits = prefilled.native(**inputs).logits
            ends = logits[batch.end_row.to(self.device), batch.end_column.to(self.device)]
            return ends[:, self.symbols.to(self.device)]
        states = prefilled.native.model(**inputs).last_hidden_state
        return self.label_head(states, batch, native=prefilled.native)

    def padded(self, batch: Rows, full: bool) -> torch.Tensor:
        """The original design: padded rows over the shared prefix, through this library."""
        if full:
            logits = self.model.forward_spans(batch.token_ids, None, self.cache)
            ends = logits[batch.end_row.to(self.device), batch.end_column.to(self.device)]
            return ends[:, self.symbols.to(self.device)]
        forest = rows_forest(batch.token_ids, self.options.prefix)
        nodes = batch.end_row * batch.token_ids.shape[1] + batch.end_column
        return self.model.score_forest(replace(forest, span_nodes=nodes), self.symbols, self.cache)

    def clock(self, run: Callable[[], Any], repeats: int) -> tuple[float, float]:
        """Median milliseconds of `run` by the host's clock and by the device's, after one warm-up."""
        run()
        host, device = [], []
        for _ in range(repeats):
            if self.device.type != "cuda":
                began = time.perf_counter()
                run()
                host.append(1e3 * (time.perf_counter() - began))
                continue
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            began = time.perf_counter()
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            host.append(1e3 * (time.perf_counter() - began))
            device.append(start.elapsed_time(end))
        return statistics.median(host), statistics.median(device or host)

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
        host, device = self.clock(lambda: [score(batch) for batch in batches], repeats)
        scale = share / sum(len(batch.token_ids) for batch in batches)
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        tokens = round(scale * sum(batch.token_ids.numel() for batch in batches))
        return Rung(name, scale * host, scale * device, tokens, len(found), difference, error, peak)

    def peak_rate(self) -> float:
        """FLOP/s of a large matrix product of random numbers."""
        size = 8192 if self.device.type == "cuda" else 1024
        one, other = (torch.randn(size, size, device=self.device).to(DTYPES[self.options.dtype]) for _ in range(2))
        return 2 * size**3 / (self.clock(lambda: one @ other, 3 * self.options.repeats)[1] / 1e3)

    def products_ms(self) -> float:
        """The decoder's matrix products on the forest's nodes, and the label head's, timed alone."""
        linears = [module.weight for module in self.native.model.modules() if isinstance(module, torch.nn.Linear)]
        widths = {weight.shape[1] for weight in linears}
        nodes = {
            width: torch.randn(self.forest.num_nodes, width, device=self.device, dtype=self.native.dtype)
            for width in widths
        }
        ends = nodes[self.native.config.hidden_size][: self.num_spans]
        head = self.native.lm_head.weight[self.symbols.to(self.device)]

        def run() -> None:
            for weight in linears:
                torch.nn.functional.linear(nodes[weight.shape[1]], weight)
            torch.nn.functional.linear(ends, head)

        return self.clock(run, self.options.repeats)[1]

    def floors(self) -> dict[str, float]:
        """The two floors in milliseconds, and what they are made of."""
        config, nodes = self.native.config, self.forest.num_nodes
        weights = sum(m.weight.numel() for m in self.native.model.modules() if isinstance(m, torch.nn.Linear))
        products = 2 * weights * nodes + 2 * self.num_spans * LABELS * config.hidden_size
        heads = config.num_hidden_layers * config.num_attention_heads * config.head_dim
        attention = 4 * heads * nodes * self.options.prefix
        rate, alone = self.peak_rate(), self.products_ms()
        return {
            "peak_tflops": rate / 1e12,
            "products_ms": alone,
            "prefix_attention_ms": 1e3 * attention / rate,
            "flop_floor_ms": 1e3 * (products + attention) / rate,
            "floor_ms": alone + 1e3 * attention / rate,
        }

    @torch.no_grad()
    def climb(self) -> list[Rung]:
        """All rungs, the reference first."""
        options, rows, chains = self.options, self.rows, self.chains
        most, spans, starts = options.max_batches, self.num_spans, len(self.chains.lengths)
        batches = rows.batches(options.batch_size, most)
        untrimmed = rows.batches(options.batch_size, most, trim=False)
        whole = Rows(rows.token_ids[:0], rows.lengths, rows.end_row, rows.end_column, torch.arange(spans))
        rungs = [
            self.measure(
                "re-encode prefix + span", rows.batches(options.reencode_batch_size, most), self.re_encode, spans
            ),
            self.measure("HF cache, a row a span, full", batches, lambda b: self.expanded(b, True), spans),
            self.measure("HF cache, a row a span, labels", batches, lambda b: self.expanded(b, False), spans),
            self.measure(
                "HF cache, a row a word start, labels",
                chains.batches(options.batch_size, None),
                lambda b: self.expanded(b, False),
                starts,
            ),
            self.measure("padded design, full", untrimmed, lambda b: self.padded(b, True), spans),
            self.measure("padded design, labels", untrimmed, lambda b: self.padded(b, False), spans),
        ]
        rungs[0].rows_tokens += spans * options.prefix
        cuda = self.device.type == "cuda" and attention_decodner.HAS_KERNEL
        if cuda:
            with mock.patch.object(attention_decodner, "forest_attention_triton", attention_decodner.forest_attention):
                rungs.append(self.measure_forest("forest, torch attention", whole, self.model))
        rungs.append(self.measure_forest("forest", whole, self.model))
        self.sentence_ms["not compiled"] = self.time_sentence(self.model)
        if cuda:
            compiled = DecodNERForSpanClassification.from_backbone(self.native)
            began = time.perf_counter()
            compiled.compile_forest()
            self.compile_s = time.perf_counter() - began
            rungs.append(self.measure_forest("forest, compiled, CUDA graph", whole, compiled))
            self.sentence_ms["compiled, CUDA graph"] = self.time_sentence(compiled)
            compiled.graphs = None
            rungs.append(self.measure_forest("forest, compiled", whole, compiled))
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
        return self.clock(lambda: model.score_forest(forest, self.symbols, cache), 3 * self.options.repeats)[0]

    def measure_forest(self, name: str, whole: Rows, model: DecodNERForSpanClassification) -> Rung:
        """The forest, all spans in one pass; alone, and as one of several that the host does not wait for."""
        cache = model.encode_prefix(self.prefix)

        def score(_: Rows) -> torch.Tensor:
            return model.score_forest(self.forest, self.symbols, cache)

        score(whole)
        rung = self.measure(name, [replace(whole, token_ids=torch.zeros(1, 1))], score, 1)
        stream = self.clock(lambda: [score(whole) for _ in range(STREAMED)], max(1, self.options.repeats // 3))
        return replace(rung, rows_tokens=self.forest.num_nodes, stream_ms=stream[0] / STREAMED)


def _largest_difference(found: dict[int, torch.Tensor], expected: dict[int, torch.Tensor]) -> float:
    """The largest absolute difference of label logits over the spans that both hold; NaN where any is."""
    both = sorted(found.keys() & expected.keys())
    apart = torch.stack([found[span] for span in both]) - torch.stack([expected[span] for span in both])
    return float(apart.abs().max())


def show(ladder: Ladder, rungs: list[Rung], floors: dict[str, float]) -> None:
    """Prints the configuration, the table, and the JSON line."""
    options = ladder.options
    baseline = min(rung.host_ms for rung in rungs if rung.name.startswith(("re-encode", "HF")))
    device = (
        torch.cuda.get_device_name() if ladder.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{options.preset}, {options.dtype}, random weights; {device}; {versions}")
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
    figures = vars(options) | floors | {"device_name": device, "torch": torch.__version__, "baseline_ms": baseline}
    figures |= {"transformers": transformers.__version__, "python": platform.python_version()}
    figures |= {"spans": ladder.num_spans, "nodes": ladder.forest.num_nodes, "build_ms": ladder.build_ms}
    figures |= {"sentence_ms": ladder.sentence_ms, "sentence_nodes": ladder.sentence_nodes}
    figures |= {"compile_s": ladder.compile_s, "date": time.strftime("%Y-%m-%d")}
    print(json.dumps(figures | {"largest_logit": largest, "rungs": [asdict(rung) for rung in rungs]}))


def main() -> None:
    """Parses the flags, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", choices=MODELS, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="bfloat16 on a GPU, float32 elsewhere if left out")
    parser.add_argument("--prefix", type=int, help="prefix tokens; 512, tiny: 128")
    parser.add_argument("--words", type=int, help="words of the document; 350, tiny: 60")
    parser.add_argument("--width", type=int, default=8, help="longest span in words")
    parser.add_argument("--tokens-per-word", type=float, default=1.4)
    parser.add_argument("--batch-size", type=int, default=256, help="rows a batch")
    parser.add_argument("--reencode-batch-size", type=int, default=64, help="rows a batch when re-encoding")
    parser.add_argument("--max-batches", type=int, default=4, help="batches run of the expensive rungs")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    document = {"prefix": 512, "words": 350} | DOCUMENTS[options.preset]
    options.prefix = document["prefix"] if options.prefix is None else options.prefix
    options.words = document["words"] if options.words is None else options.words
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    with torch.no_grad():
        ladder = Ladder(options)
        rungs = ladder.climb()
        show(ladder, rungs, ladder.floors())


if __name__ == "__main__":
    main()
