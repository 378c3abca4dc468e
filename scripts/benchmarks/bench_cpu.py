"""Times the default model (or another one) on the CPU, against re-encoding every span with the very same weights.

In: sentences (by default those of the tests) and a model. Out: sentences a second, from text to entities, all together
and one at a time; the same for re-encoding, in which every candidate span's whole prompt (instruction, labels,
document, span) goes through transformers' own forward pass, in batches of equal length without padding; their ratio;
the largest difference between the scores of both ways; with --startup also how long the command line takes to its
first answer, and where the time goes; and all of it as JSON in the last line.
Re-encoding is timed in its favour: its tokens are given to it, and no entities are made of its scores.
"""

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import pipeline
from transformers.utils import logging

from decodner_hf.core.decoding import label_scores
from decodner_hf.core.pipeline import DecodNERPipeline
from decodner_hf.core.pipeline_io import PreparedDocument
from decodner_hf.data.examples import load_examples
from decodner_hf.default_model import default_model

SENTENCES = Path(__file__).parents[2] / "tests" / "support" / "default_sentences.jsonl"
SHOWN = "Apple was founded by Steve Jobs in Cupertino."
STARTS = 5
BATCH_TOKENS = (512, 2048, 8192)  # of which re-encoding takes the fastest
STAGES = """
import gc, sys, time
gc.disable()
times = [time.perf_counter()]
import torch
times.append(time.perf_counter())
from transformers import Pipeline, PreTrainedModel, pipeline
times.append(time.perf_counter())
import decodner_hf
times.append(time.perf_counter())
ner = pipeline("decodner-ner", model=sys.argv[1], device="cpu")
times.append(time.perf_counter())
ner(sys.argv[2])
times.append(time.perf_counter())
print([later - before for before, later in zip(times, times[1:])])
"""
STAGE_NAMES = ("import torch", "import transformers", "import decodner_hf", "load the model", "first answer")


class Reencoding:
    """Scores spans one by one, each after its whole prompt, with the decoder as transformers runs it."""

    def __init__(self, pipe: DecodNERPipeline) -> None:
        """Copies the decoder and gives the copy transformers' own attention."""
        self.pipe = pipe
        self.native = copy.deepcopy(pipe.model.backbone).eval()
        self.native.set_attn_implementation("sdpa")
        self.batch_tokens = BATCH_TOKENS[-1]

    def rows(self, prepared: Sequence[PreparedDocument]) -> list[NDArray[np.int64]]:
        """Returns the whole prompt of every span of every document, as token ids."""
        rows = []
        for item in prepared:
            (prompt,), (document,) = item.prompts, item.windows
            paths = document.candidates.paths
            before = np.concatenate([prompt.prefix_token_ids, document.chain_token_ids])
            starts = paths.cu_seqlens[paths.span_path]
            for start, length in zip(starts, paths.span_length, strict=True):
                rows.append(np.concatenate([before, paths.token_ids[start : start + length], prompt.cue_token_ids]))
        return rows

    @torch.inference_mode()
    def score(self, rows: Sequence[NDArray[np.int64]], symbols: NDArray[np.int64]) -> NDArray[np.float32]:
        """Label logits [S, L + 1] of rows whose next token is a label symbol."""
        by_length = defaultdict(list)
        for index, row in enumerate(rows):
            by_length[len(row)].append(index)
        logits = np.empty((len(rows), len(symbols)), np.float32)
        columns = torch.from_numpy(symbols)
        for length, indices in by_length.items():
            size = max(1, self.batch_tokens // length)
            for first in range(0, len(indices), size):
                chosen = indices[first : first + size]
                token_ids = torch.from_numpy(np.stack([rows[index] for index in chosen]))
                last = self.native(input_ids=token_ids, use_cache=False, logits_to_keep=1).logits[:, -1]
                logits[chosen] = last[:, columns].float().numpy()
        return logits

    def tune(self, rows: Sequence[NDArray[np.int64]], symbols: NDArray[np.int64]) -> float:
        """Chooses the fastest number of tokens a batch; returns the seconds that `rows` take with it."""
        seconds = {}
        for self.batch_tokens in BATCH_TOKENS:
            seconds[self.batch_tokens] = clock(lambda: self.score(rows, symbols), 1)
        self.batch_tokens = min(seconds, key=lambda size: seconds[size])
        return seconds[self.batch_tokens]


def clock(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def measure(pipe: DecodNERPipeline, texts: list[str], repeats: int, reencoded: int) -> dict[str, Any]:
    """Times both ways: all `texts` and each alone; re-encoding of the first `reencoded` ones only."""
    other, sample = Reencoding(pipe), texts[:reencoded]
    prepared = [pipe.preprocess(text) for text in sample]
    (prompt,) = prepared[0].prompts
    rows = other.rows(prepared)
    found = np.concatenate([scored.label_logits for scored in pipe.scorer.score(prepared)])
    pipe(texts)
    together = clock(lambda: pipe(texts), repeats)
    alone = [clock(lambda text=text: pipe(text), repeats) for text in texts]
    other_alone = other.tune(other.rows(prepared[:1]), prompt.symbol_token_ids)
    before = clock(lambda: pipe(sample), repeats)
    began = time.perf_counter()
    expected = other.score(rows, prompt.symbol_token_ids)
    other_together = time.perf_counter() - began
    sampled = (before + clock(lambda: pipe(sample), repeats)) / 2
    return {
        "sentences": len(texts),
        "sentences_per_second": len(texts) / together,
        "ms_alone": 1000 * statistics.median(alone),
        "reencoded_sentences": len(sample),
        "reencoded_spans": len(rows),
        "reencoded_tokens": sum(map(len, rows)),
        "reencoding_batch_tokens": other.batch_tokens,
        "reencoding_sentences_per_second": len(sample) / other_together,
        "ratio": other_together / sampled,
        "first_sentence": {"text": texts[0], "ms": 1000 * alone[0], "reencoding_ms": 1000 * other_alone},
        "largest_score_difference": float(np.abs(label_scores(found) - label_scores(expected)).max()),
    }


def measure_startup(model: str) -> dict[str, float]:
    """Median seconds of the command line as a whole, of its help, and of its stages, over processes of their own."""

    def command(*arguments: str) -> float:
        finished = [sys.executable, "-m", "decodner_cli", *arguments]
        return clock(lambda: subprocess.run(finished, check=True, capture_output=True), STARTS)

    command("--help")  # the files are in memory from here on
    whole = {"decodner --help": command("--help"), "decodner TEXT": command(SHOWN, "--model", model)}
    stages = []
    for _ in range(STARTS):
        process = [sys.executable, "-c", STAGES, model, SHOWN]
        finished = subprocess.run(process, check=True, capture_output=True, text=True)
        stages.append(json.loads(finished.stdout))
    medians = map(statistics.median, zip(*stages, strict=True))
    return whole | dict(zip(STAGE_NAMES, medians, strict=True))


def show(figures: dict[str, Any]) -> None:
    """Prints configuration, table and JSON."""
    print(
        f"{figures['parameters'] / 1e6:.1f} M parameters, {figures['dtype']}; {figures['processor']}, "
        f"{figures['threads']} threads; torch {torch.__version__}, transformers {transformers.__version__}; "
        f"{figures['labels']} labels, {figures['sentences']} sentences"
    )
    first = figures["first_sentence"]
    fast = figures["sentences_per_second"], figures["ms_alone"], first["ms"]
    slow = figures["reencoding_sentences_per_second"], first["reencoding_ms"]
    print(f"{'':34s}{'sentences/s':>12s}{'ms alone, median':>18s}{'the first one':>15s}")
    print(f"{'decodner, from text to entities':34s}{fast[0]:12.1f}{fast[1]:18.1f}{fast[2]:15.1f}")
    print(f"{'re-encoding every span':34s}{slow[0]:12.2f}{'':18s}{slow[1]:15.0f}")
    print(f"{'ratio':34s}{figures['ratio']:11.1f}x{'':18s}{slow[1] / fast[2]:14.1f}x")
    print(
        f"Re-encoding: {figures['reencoded_sentences']} sentences, {figures['reencoded_spans']} spans, "
        f"{figures['reencoded_tokens']} tokens, {figures['reencoding_batch_tokens']} a batch; the ratio is "
        f"of these sentences, all together. Largest difference of a score: {figures['largest_score_difference']:.1e}"
    )
    for name, seconds in figures.get("startup_seconds", {}).items():
        print(f"{name:34s}{seconds:10.2f} s")
    print(json.dumps(figures))


def processor() -> str:
    """Returns the processor's name, where the system tells."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> int:
    """Parses the flags, measures and prints; 1 where the two ways disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id (default: the package's own)")
    parser.add_argument("--labels", nargs="+", help="entity types (default: the model's)")
    parser.add_argument("--dtype", default="auto", help="of the weights (default: auto, as the model's config says)")
    parser.add_argument("--sentences", type=Path, default=SENTENCES, help="labelled data (default: that of the tests)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median counts (default: 5)")
    parser.add_argument("--reencoded", type=int, default=5, help="sentences to re-encode (default: 5)")
    parser.add_argument("--tolerance", type=float, help="of the scores (default: 1e-4 in float32, else 0.1)")
    parser.add_argument("--startup", action="store_true", help="also time the command line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    model = options.model or str(default_model())
    pipe = pipeline("decodner-ner", model=model, device="cpu", dtype=options.dtype, candidate_labels=options.labels)
    texts = [example.text for example in load_examples(options.sentences)]
    with torch.inference_mode():
        figures = measure(pipe, texts, options.repeats, options.reencoded)
    dtype = str(pipe.model.dtype).removeprefix("torch.")
    figures |= {
        "model": model if options.model else "default",
        "parameters": sum(parameter.numel() for parameter in pipe.model.parameters()),
        "labels": len(options.labels or pipe.model.config.labels),
        "dtype": dtype,
        "threads": options.threads,
        "processor": processor(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    if options.startup:
        figures["startup_seconds"] = measure_startup(model)
    show(figures)
    tolerance = options.tolerance or (1e-4 if dtype == "float32" else 0.1)
    if figures["largest_score_difference"] > tolerance:
        print(f"error: the scores of both ways differ by more than {tolerance}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
