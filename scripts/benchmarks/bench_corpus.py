"""Times the pipeline from raw text to entities over a synthetic corpus, against the floor of the hardware.

In: the shape of a model (random weights, a tokenizer trained here, nothing is downloaded), numbers and lengths of
documents. Out: documents and nodes a second; the share of the wall time that the floor (the decoder's matrix products
alone, and the prefix attention at the measured rate) would take; the host's share, by which the wall time exceeds
scoring the same documents already encoded and without decoding; the first run of a corpus, in which sizes of passes
come up that were not met before; peak memory and its parts, for one and
several corpus sizes; the exponent of cost in words x width; and the same as JSON in the last line.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
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
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from decodner_hf import DecodNERConfig, DecodNERForSpanClassification, DecodNERPipeline
from decodner_hf.core import packed_pass
from decodner_hf.core.attention_metadata import AttentionMetadata
from decodner_hf.core.packed_pass import PackedModel
from decodner_hf.core.pass_queues import documents_by_pass
from decodner_hf.core.pipeline_io import PreparedDocument
from decodner_hf.core.scoring import activation_bytes_per_node
from decodner_hf.core.static_inputs import PREFIX_SIZES
from decodner_hf.core.streaming import encoded_groups, read_groups

# model type, hidden, intermediate, layers, heads, key/value heads, head size
MODELS = {
    "tiny": ("llama", 64, 128, 2, 4, 2, 16),
    "default": ("llama", 384, 1024, 12, 6, 6, 64),  # the bundled model's
    "smollm2-135m": ("llama", 576, 1536, 30, 9, 3, 64),
    "qwen-0.5b": ("qwen2", 896, 4864, 24, 14, 2, 64),
    "llama-1b": ("llama", 2048, 8192, 16, 32, 8, 64),
}
VOCABULARIES = {
    "tiny": 4096,
    "default": 16384,
    "smollm2-135m": 49152,
    "qwen-0.5b": 151936,
    "llama-1b": 128256,
}
LABELS = ("person", "organization", "location", "miscellaneous")
SYLLABLES = ("ka", "lo", "mi", "ren", "to", "sa", "vel", "ur", "den", "bri", "o", "stan", "ne", "qui", "ga", "pro")
EXPONENT_WORDS = {"tiny": (25, 50), "default": (175, 350)}  # of the others:
LARGE_EXPONENT_WORDS = (175, 350, 700, 1400)
EXPONENT_WIDTHS = (4, 8, 12)


@dataclass
class Corpus:
    """One line of the table; seconds are of the host's clock, captures those of the runs after the first."""

    name: str
    documents: int
    words: int
    spans: int
    nodes: int
    first_seconds: float
    captures: int
    seconds: float
    scoring_seconds: float
    encoding_seconds: float
    decoding_seconds: float
    floor_seconds: float
    peak_bytes: int | None
    weight_bytes: int
    prefix_bytes: int
    activation_bytes: int
    graph_bytes: int

    @property
    def host_share(self) -> float:
        """Part of the wall time that is not scoring."""
        return max(0.0, 1 - self.scoring_seconds / self.seconds)


def word_list(generator: np.random.Generator, count: int) -> list[str]:
    """Pronounceable words of one to four syllables, a fifth of them with a capital."""
    words = []
    for _ in range(count):
        word = "".join(generator.choice(SYLLABLES, generator.integers(1, 5)))
        words.append(word.capitalize() if generator.random() < 0.2 else word)
    return words


def texts(generator: np.random.Generator, vocabulary: list[str], documents: int, words: int) -> list[str]:
    """Documents of about `words` words, frequent words more often."""
    lengths = np.maximum(2, generator.poisson(words, documents))
    picked = (generator.zipf(1.2, int(lengths.sum())) - 1) % len(vocabulary)
    bounds = np.cumsum(lengths)[:-1]
    return [" ".join(vocabulary[index] for index in piece) + "." for piece in np.split(picked, bounds)]


def train_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """Returns a byte-level tokenizer that needs about 1.4 tokens a word of these."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(vocabulary), "Text: Span: Entity types: Classify"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!", pad_token="!")


def make_pipeline(
    options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, continuation: bool = False
) -> DecodNERPipeline:
    """Returns the library's pipeline around a random model of the preset's shape, with the question if asked for."""
    kind, hidden, intermediate, layers, heads, kv_heads, head_size = MODELS[options.preset]
    config = AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_size,
        vocab_size=VOCABULARIES[options.preset],
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(options.device):
        native = AutoModelForCausalLM.from_config(config, dtype=DTYPES[options.dtype]).eval()
    settings = DecodNERConfig(continuation=continuation)
    return DecodNERPipeline(
        model=DecodNERForSpanClassification.from_backbone(native, settings),
        tokenizer=tokenizer,
        device=options.device,
        token_budget=options.token_budget,
        compile=options.compile,
        candidate_labels=list(LABELS),
        threshold=0.3,
    )


class Bench:
    """The pipeline and what its passes are measured with."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Makes words, tokenizer and model."""
        self.options, self.device = options, torch.device(options.device)
        self.generator = np.random.default_rng(0)
        self.words = word_list(self.generator, 3000)
        began = time.perf_counter()
        self.pipe = make_pipeline(options, train_tokenizer(self.words))
        self.setup_seconds = time.perf_counter() - began
        self.backbone = self.pipe.model.backbone
        self.rate = peak_rate(self.device, self.backbone.dtype, 5)
        weights = linear_weights(self.backbone.model)
        self.seconds_a_node = products_seconds(weights, [self.budget] * len(weights), 3) / self.budget

    @property
    def budget(self) -> int:
        """Nodes per pass."""
        return self.pipe.scorer.token_budget

    def runs(self, documents: list[str]) -> list[list[PreparedDocument]]:
        """Encodes the documents, in the groups that share a pass."""
        stream = self.pipe.stream(documents, self.pipe.settings_for({}))
        groups = encoded_groups(read_groups(documents, stream.read), stream.encode)
        return list(documents_by_pass([prepared for group in groups for prepared in group], self.budget))

    def clock(self, run: Callable[[], Any], repeats: int, warm: bool) -> float:
        """Median seconds by the host's clock."""
        return clock(run, repeats, self.device, warm)[0]

    def measure(self, name: str, documents: list[str]) -> Corpus:
        """Times the whole, then its stages alone."""
        first = self.clock(lambda: list(self.pipe(iter(documents))), 1, False)
        captured = self.captures()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        counted = self._count_nodes()
        seconds = self.clock(lambda: [None for _ in self.pipe(iter(documents))], self.options.repeats, False)
        nodes, captured = counted() // self.options.repeats, self.captures() - captured
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        began = time.perf_counter()
        runs = self.runs(documents)
        encoding = time.perf_counter() - began
        scoring = self.clock(
            lambda: [part.wait() for part in [self.pipe.scorer.launch(run) for run in runs]],
            self.options.repeats,
            True,
        )
        settings = self.pipe.settings_for({})
        stream = self.pipe.stream(documents, settings)
        scored = [self.pipe.scorer.score(run) for run in runs]
        began = time.perf_counter()
        for run in scored:
            for document, entities in zip(run, stream.decode(run), strict=True):
                stream.write(entities, document.prepared)
        decoding = time.perf_counter() - began
        prefix = len(runs[0][0].prompts[0].prefix_token_ids)
        spans = sum(window.candidates.num_spans for run in runs for item in run for window in item.windows)
        config = self.backbone.config
        itemsize = self.backbone.dtype.itemsize
        heads = config.num_attention_heads * config.head_dim * config.num_hidden_layers
        floor = nodes * (self.seconds_a_node + 4 * heads * prefix / self.rate)
        kept = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * itemsize
        buffers = [cache.layers[0].calls[0] for cache in self.pipe.scorer.kept_prefixes()]
        held = sum(buffer.keys.shape[2] for buffer in buffers)
        largest = min(self.budget, nodes)
        activations = largest * activation_bytes_per_node(self.pipe.model)
        # graphs have activations of their own, and room for a copy of a prefix
        graphs = activations + kept * PREFIX_SIZES[-1] if self.pipe.model.graphs is not None else 0
        weights = sum(parameter.numel() * itemsize for parameter in self.backbone.parameters())
        words = sum(text.count(" ") + 1 for text in documents)
        stages = (first, captured, seconds, scoring, encoding, decoding, floor)
        return Corpus(
            name, len(documents), words, spans, nodes, *stages, peak, weights, kept * held, activations, graphs
        )

    def captures(self) -> int:
        """CUDA graphs captured so far."""
        graphs = self.pipe.model.graphs
        return 0 if graphs is None else graphs.captures

    def _count_nodes(self) -> Callable[[], int]:
        """From now on counts the nodes of all passes, prefixes included."""
        counts, plan = [0], packed_pass.pass_metadata

        def counting(model: PackedModel, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> AttentionMetadata:
            counts[0] += position_ids.numel()
            return plan(model, position_ids, *args, **kwargs)

        packed_pass.pass_metadata = counting

        def stop() -> int:
            packed_pass.pass_metadata = plan
            return counts[0]

        return stop

    def exponent(self) -> dict[str, Any]:
        """Seconds of one document over words x width, and the slope of their logarithms."""
        points = []
        for words in EXPONENT_WORDS.get(self.options.preset, LARGE_EXPONENT_WORDS):
            document = texts(self.generator, self.words, 1, words)[0]
            for width in EXPONENT_WIDTHS:
                self.pipe([document] * 4, max_span_words=width)  # the second pass of a size is captured
                seconds = self.clock(lambda d=document, w=width: self.pipe([d] * 4, max_span_words=w), 2, True) / 4
                points.append({"words": words, "width": width, "seconds": seconds})
        work = np.log([point["words"] * point["width"] for point in points])
        slope = np.polyfit(work, np.log([point["seconds"] for point in points]), 1)[0]
        return {"exponent": float(slope), "points": points}


def show(bench: Bench, corpora: list[Corpus], cost: dict[str, Any]) -> None:
    """Prints the configuration, the table, and the JSON line."""
    options, figures = bench.options, figures_of(bench.options)
    print(
        f"{options.preset}, {options.dtype}, random weights, {'compiled' if options.compile else 'not compiled'}; "
        f"{figures['device_name']}; torch {figures['torch']}, transformers {figures['transformers']}; "
        f"{bench.pipe.scorer.token_budget} nodes a pass, {bench.rate / 1e12:.3g} TFLOP/s"
    )
    print(
        f"{'':26s}{'documents':>10s}{'spans':>10s}{'nodes':>10s}{'first s':>9s}{'seconds':>9s}{'docs/s':>9s}"
        f"{'k nodes/s':>10s}{'of floor':>9s}{'host':>7s}{'encode s':>9s}{'decode s':>9s}  peak (weights + prefix + "
        "activations + graphs)"
    )
    for line in corpora:
        parts = " + ".join(
            f"{part / 2**30:.2f}"
            for part in (line.weight_bytes, line.prefix_bytes, line.activation_bytes, line.graph_bytes)
        )
        peak = "" if line.peak_bytes is None else f"{line.peak_bytes / 2**30:.2f} GiB ({parts})"
        print(
            f"{line.name:26s}{line.documents:10d}{line.spans:10d}{line.nodes:10d}{line.first_seconds:9.2f}{line.seconds:9.2f}"
            f"{line.documents / line.seconds:9.1f}{line.nodes / line.seconds / 1e3:10.1f}"
            f"{line.floor_seconds / line.seconds:9.0%}{line.host_share:7.0%}"
            f"{line.encoding_seconds:9.2f}{line.decoding_seconds:9.2f}  {peak}"
        )
    print(f"cost of a document grows with (words x width) ** {cost['exponent']:.2f}")
    figures |= {"tflops": bench.rate / 1e12, "captures": bench.captures()}
    figures |= {"token_budget": bench.pipe.scorer.token_budget, "setup_seconds": bench.setup_seconds} | cost
    lines = [asdict(line) | {"host_share": line.host_share} for line in corpora]
    print(json.dumps(figures | {"corpora": lines}))


def main() -> None:
    """Parses the flags, measures and prints."""
    parser = make_parser(__doc__, MODELS)
    parser.add_argument("--sentences", type=int, help="short documents; 3453, tiny: 64")
    parser.add_argument("--sentence-words", type=int, default=13)
    parser.add_argument("--long-documents", type=int, help="long documents; 48, tiny: 4")
    parser.add_argument("--long-words", type=int, help="1400, tiny: 120")
    parser.add_argument("--token-budget", type=int, help="nodes a pass; the library's default if left out")
    parser.add_argument("--compile", action="store_true", help="compile the layers first")
    parser.add_argument("--repeats", type=int, default=3, help="runs after a first one; their median counts")
    options = read_flags(parser)
    tiny = options.preset == "tiny"
    options.sentences = options.sentences or (64 if tiny else 3453)
    options.long_documents = options.long_documents or (4 if tiny else 48)
    options.long_words = options.long_words or (120 if tiny else 1400)
    bench = Bench(options)
    sentences = texts(bench.generator, bench.words, options.sentences, options.sentence_words)
    long = texts(bench.generator, bench.words, options.long_documents, options.long_words)
    corpora = [
        bench.measure("sentences, a quarter", sentences[: len(sentences) // 4]),
        bench.measure("sentences", sentences),
        bench.measure("long documents, half", long[: max(1, len(long) // 2)]),
        bench.measure("long documents", long),
    ]
    show(bench, corpora, bench.exponent())


if __name__ == "__main__":
    main()
