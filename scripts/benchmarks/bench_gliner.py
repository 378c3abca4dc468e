"""Times GLiNER and this library side by side, both from raw strings to lists of dicts, with random weights.

    python scripts/benchmarks/bench_gliner.py --device cuda --compile        # one GPU, the published shapes
    python scripts/benchmarks/bench_gliner.py --shapes tiny --sentences 32   # a look on a CPU

GLiNER runs with its own fastest settings: bfloat16 on a GPU, the best of several batch sizes, packed and padded
(tried on some of the texts), also with batches collated in a thread beside the model. Documents beyond its 384 words
are cut into windows of 384, so that neither side drops words. Both read the same texts with one tokenizer trained
here (about 1.4 tokens a word); nothing is downloaded. GLiNER (`pip install gliner`) is imported only when its side
runs; where one environment cannot hold both (GLiNER 0.2.29 asks for transformers < 5.17), run the sides apart:
--only gliner, --only ours.
Random weights find nothing sensible: this compares speed, not quality.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_corpus import texts, train_tokenizer, word_list
from bench_setting import DTYPES, clock, figures_of
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

THRESHOLD = 0.95  # of GLiNER's sigmoids, which random weights put around 0.5: real models find few entities, too
LABELS = ("person", "organization", "location", "miscellaneous")
WINDOW_WORDS = 384  # GLiNER's max_len
# hidden, intermediate, layers, heads; vocabulary 128,100: the encoders of gliner_large-v2.1, gliner_medium-v2.1
GLINER = {"tiny": (64, 128, 2, 2), "medium": (768, 3072, 12, 12), "large": (1024, 4096, 24, 16)}
# type, hidden, intermediate, layers, heads, key/value heads, vocabulary
OURS = {
    "tiny": ("llama", 64, 128, 2, 2, 1, 4096),
    "smollm2-135m": ("llama", 576, 1536, 30, 9, 3, 49152),
    "qwen-0.5b": ("qwen2", 896, 4864, 24, 14, 2, 151936),
    "llama-1b": ("llama", 2048, 8192, 16, 32, 8, 128256),
}
BATCHES = {"cuda": (16, 64, 256), "cpu": (4, 16)}
PACKED_LENGTHS = {"cuda": (2048, 8192), "cpu": (512,)}

Tagger = Callable[[Sequence[str]], Any]


def make_gliner(shape: str, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> Any:
    """Returns a GLiNER with random weights of a published shape; ImportError where it is not installed."""
    try:
        from gliner import GLiNER
    except ImportError as error:
        raise ImportError("this side needs GLiNER: pip install gliner; or use --only ours.") from error
    hidden, intermediate, layers, heads = GLINER[shape]
    marks = ["[FLERT]", "<<ENT>>", "<<SEP>>"]
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="!", pad_token="!")
    own.add_tokens(marks, special_tokens=True)
    with tempfile.TemporaryDirectory() as folder:
        own.save_pretrained(folder)
        encoder = {
            "model_type": "deberta-v2",
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "vocab_size": 128_100 if shape != "tiny" else 4096,
            "max_position_embeddings": 512,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "max_relative_positions": -1,
            "type_vocab_size": 0,
            "layer_norm_eps": 1e-7,
        }
        config = {
            "model_name": folder,
            "encoder_config": encoder,
            "hidden_size": 512,
            "max_width": 12,
            "max_len": WINDOW_WORDS,
            "span_mode": "markerV0",
            "class_token_index": own.convert_tokens_to_ids("<<ENT>>"),
            "vocab_size": len(own),
        }
        torch.manual_seed(0)
        model = GLiNER.from_config(config, backbone_from_pretrained=False, map_location=options.device)
    return model.to(dtype=DTYPES[options.dtype]).eval()


def gliner_ways(model: Any, device: str) -> Iterator[tuple[str, Tagger]]:
    """Yields GLiNER's settings: batch sizes, padded and packed, each with a name."""
    from gliner.infer_packing import InferencePackingConfig

    kind = torch.device(device).type
    for batch in BATCHES[kind]:
        for packed in (None, *PACKED_LENGTHS[kind]):
            packing = None if packed is None else InferencePackingConfig(max_length=packed)
            name = f"batch {batch}" + ("" if packed is None else f", packed to {packed}")

            def tag(texts: Sequence[str], batch: int = batch, packing: Any = packing) -> Any:
                return model.inference(
                    list(texts), list(LABELS), threshold=THRESHOLD, batch_size=batch, packing_config=packing
                )

            yield name, tag
            yield f"{name}, collated in a thread", _collated_ahead(model, batch, packing)


def _collated_ahead(model: Any, batch: int, packing: Any) -> Tagger:
    """GLiNER's own stages, with the next batch collated in a thread while the model runs."""

    def tag(texts: Sequence[str]) -> Any:
        prepared = model.prepare_batch(list(texts), list(LABELS))
        collator, rows = model.create_collator(), prepared["input_x"]
        decoded: list[Any] = []
        with ThreadPoolExecutor(1) as pool:

            def collated(start: int) -> Any:
                return pool.submit(model.collate_batch, rows[start : start + batch], list(LABELS), collator)

            ahead = collated(0)
            for start in range(0, len(rows), batch):
                current, ahead = ahead.result(), collated(start + batch) if start + batch < len(rows) else None
                output = model.run_batch(current, threshold=THRESHOLD, packing_config=packing)
                decoded += model.decode_batch(output, current, threshold=THRESHOLD)
        maps = ("valid_texts", "valid_to_orig_idx", "start_token_map", "end_token_map", "num_original")
        return model.map_entities_to_text(decoded, *(prepared[name] for name in maps))

    return tag


def fastest(ways: Iterator[tuple[str, Tagger]], sample: Sequence[str], device: torch.device) -> tuple[str, Tagger]:
    """Returns the setting that is fastest on a sample; settings that fail are named and left out."""
    found: list[tuple[float, str, Tagger]] = []
    for name, tag in ways:
        try:
            found.append((clock(lambda tag=tag: tag(sample), 2, device)[0], name, tag))
        except Exception as error:  # out of memory, or a path of GLiNER that its release does not serve
            print(f"  left out: {name}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
    if not found:
        raise RuntimeError("GLiNER ran with none of the settings.")
    _, name, tag = min(found, key=lambda item: item[0])
    return name, tag


def windows_of(documents: Sequence[str]) -> list[str]:
    """Cuts texts into windows of at most `WINDOW_WORDS` words, of which GLiNER reads no more."""
    cut = []
    for text in documents:
        words = text.split(" ")
        cut += [" ".join(words[start : start + WINDOW_WORDS]) for start in range(0, len(words), WINDOW_WORDS)]
    return cut


def make_ours(shape: str, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> Any:
    """Returns this library's pipeline around a decoder with random weights."""
    from decodner_hf import DecodNERPipeline

    kind, hidden, intermediate, layers, heads, kv_heads, vocabulary = OURS[shape]
    config = AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocabulary,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(options.device):
        native = AutoModelForCausalLM.from_config(config, dtype=DTYPES[options.dtype]).eval()
    return DecodNERPipeline(
        model=native,
        tokenizer=tokenizer,
        device=options.device,
        compile=options.compile,
        candidate_labels=list(LABELS),
        threshold=0.3,
    )


def parameters_of(model: torch.nn.Module) -> int:
    """Returns the number of parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())


def read_texts(options: argparse.Namespace) -> tuple[dict[str, list[str]], PreTrainedTokenizerFast]:
    """Returns the corpora by name, and a tokenizer for them."""
    generator = np.random.default_rng(0)
    vocabulary = word_list(generator, 3000)
    tokenizer = train_tokenizer(vocabulary)
    sentences = texts(generator, vocabulary, options.sentences, 13)
    if options.text is not None:
        sentences = [line for line in options.text.read_text(encoding="utf-8").splitlines() if line.strip()]
    long = texts(generator, vocabulary, options.documents, options.document_words)
    return {"sentences": sentences, "documents": long}, tokenizer


def main() -> None:
    """Parses the flags, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="bfloat16 on a GPU, float32 elsewhere if left out")
    parser.add_argument("--only", choices=("gliner", "ours"), help="one side")
    shapes = sorted({*GLINER, *OURS})
    parser.add_argument("--shapes", nargs="+", choices=shapes, help="all but tiny if left out")
    parser.add_argument("--text", type=Path, help="a file with a sentence a line, instead of synthetic ones")
    parser.add_argument("--sentences", type=int, default=3453, help="synthetic ones, of 13 words")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--document-words", type=int, default=1400)
    parser.add_argument("--compile", action="store_true", help="compile our layers first")
    parser.add_argument("--repeats", type=int, default=3, help="runs after a first one; their median counts")
    options = parser.parse_args()
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    options.shapes = options.shapes or [shape for shape in shapes if shape != "tiny"]
    device = torch.device(options.device)
    corpora, tokenizer = read_texts(options)
    figures = figures_of(options)
    print(f"{figures['device_name']}, {options.dtype}, torch {figures['torch']}, random weights")
    print(f"{'side':8}{'shape':14}{'M':>8}{'sentences/s':>13}{'documents/s':>13}  settings")
    lines = []
    for side, known in (("gliner", GLINER), ("ours", OURS)):
        for shape in known if options.only in (None, side) else ():
            if shape in options.shapes:
                lines.append(measure(side, shape, corpora, tokenizer, options, device))
    figures = {name: str(value) if isinstance(value, Path) else value for name, value in figures.items()}
    print(json.dumps(figures | {"lines": lines}))


def measure(
    side: str,
    shape: str,
    corpora: dict[str, list[str]],
    tokenizer: PreTrainedTokenizerFast,
    options: argparse.Namespace,
    device: torch.device,
) -> dict[str, Any]:
    """Times one model on both corpora, and prints its line."""
    line: dict[str, Any] = {"side": side, "shape": shape}
    began = time.perf_counter()
    model = (make_gliner if side == "gliner" else make_ours)(shape, tokenizer, options)
    line["millions"] = parameters_of(model if side == "gliner" else model.model) / 1e6
    settings = []
    for name, documents in corpora.items():
        if side == "gliner":
            given = windows_of(documents)
            sample = given[: max(1, len(given) // 4)]
            chosen, tag = fastest(gliner_ways(model, options.device), sample, device)
            settings.append(f"{name}: {chosen}")
        else:
            given, tag = documents, lambda texts: list(model(iter(texts)))
            tag(given)  # sizes of passes come up for the first time
        seconds = clock(lambda tag=tag, given=given: tag(given), options.repeats, device)[0]
        line[f"{name}_per_second"] = len(documents) / seconds
    if side == "gliner":
        line["gliner"] = version("gliner")
    line["settings"] = "; ".join(settings) or ("compiled" if options.compile else "not compiled")
    line["seconds_in_all"] = time.perf_counter() - began
    print(
        f"{side:8}{shape:14}{line['millions']:8.0f}{line['sentences_per_second']:13,.1f}"
        f"{line['documents_per_second']:13,.2f}  {line['settings']}",
        flush=True,
    )
    return line


if __name__ == "__main__":
    main()
