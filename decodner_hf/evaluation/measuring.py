"""Measures a pipeline on labelled examples: what `decodner evaluate` and the benchmark drivers report.

In: a pipeline and examples. Out: one dict of plain values, for JSON and for `report_table`.
Candidates, scores and decoding are the pipeline's own. Knows nothing of files or of the command line.
"""

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from tqdm import tqdm

from ..core.pipeline import DecodNERPipeline
from ..data.document_context import Context
from ..data.examples import Example
from .calibration import reliability
from .labelled_scoring import Decoder, score_examples
from .other_scorers import nervaluate_scores, seqeval_scores
from .span_metrics import confusion, span_scores

AGREEMENT = 1e-9  # of our figures with seqeval's
RESAMPLES = 1000


def measure(
    pipe: DecodNERPipeline,
    examples: Sequence[Example],
    *,
    name: str,
    split: str | None = None,
    context: Context | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    choices: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores, decodes and measures one set; shows a progress bar on a terminal.

    Args:
        pipe: the pipeline; its labels, thresholds and other settings are used.
        examples: fully labelled examples.
        name: what the result calls the set.
        split: which of its splits they are.
        context: how much of its document each is read with; None: every example alone.
        resamples: of the bootstrap; 0 for no interval.
        seed: of the bootstrap.
        choices: keyword arguments of a call to the pipeline (candidate_labels, threshold, overlap, ...).

    Returns:
        The keys `dataset, split, context, num_examples, settings, scores` (see `span_scores`), `coverage` (gold spans
        that are candidates, and the reasons of the others), `seqeval` and `nervaluate` (None where they cannot say),
        `reliability`, `confusion` and `speed`.

    Raises:
        ValueError: as `score_examples`, or a context and examples that name no document.
    """
    if context is not None and not any(example.document for example in examples):
        raise ValueError(
            f"{name} does not say which document a sentence belongs to: read every sentence alone (context sentence)."
        )
    chosen = dict(choices or {})
    with tqdm(total=len(examples), unit="example", disable=None) as progress:
        scored = score_examples(pipe, examples, context=context, progress=progress.update, **chosen)
    decoder = Decoder.of(pipe, scored.labels, **chosen)
    started = time.perf_counter()
    predicted = decoder.decode(scored)
    seconds = scored.seconds + time.perf_counter() - started
    scores = span_scores(scored.gold, predicted, scored.labels, units=scored.documents, resamples=resamples, seed=seed)
    seqeval: dict[str, Any] | None = seqeval_scores(scored.gold, predicted)
    if seqeval is not None:
        seqeval["agrees"] = all(abs(scores[figure] - value) < AGREEMENT for figure, value in seqeval.items())
    return {
        "dataset": name,
        "split": split,
        "context": "sentence" if context is None else context.kind,
        "num_examples": len(examples),
        "settings": {
            "labels": list(scored.labels),
            "thresholds": dict(zip(scored.labels, decoder.thresholds, strict=True)),
            "temperature": decoder.temperature,
            "overlap": decoder.overlap,
            "flat_selection": decoder.flat_selection,
            "max_span_words": pipe.settings_for(chosen).max_span_words,
            "context_words": None if context is None else context.words,
            "dtype": str(pipe.model.dtype),
            "resamples": resamples,
            "seed": seed,
            "versions": {package: version(package) for package in ("torch", "transformers", "numpy")},
        },
        "scores": scores,
        "coverage": scored.coverage,
        "seqeval": seqeval,
        "nervaluate": nervaluate_scores(scored.gold, predicted, scored.labels),
        "reliability": reliability(scored, decoder),
        "confusion": {
            "labels": [*scored.labels, "(none)"],
            "counts": confusion(scored.gold, predicted, len(scored.labels)).tolist(),
        },
        "speed": {"seconds": seconds, "examples_per_second": len(examples) / seconds, "device": str(pipe.device)},
    }


def report_table(result: Mapping[str, Any]) -> str:
    """Returns the figures of one set, as `measure` gives them, in lines for reading; F1 and the like in percent."""
    scores = result["scores"]
    low, high = scores.get("f1_interval", (None, None))
    interval = "" if low is None else f"   95 % interval of F1 {percent(low)} to {percent(high)}"
    split = f" {result['split']}" if result["split"] else ""
    lines = [f"{result['dataset']}{split} ({result['context']}), {result['num_examples']} examples"]
    width = max(len(label) for label in ("micro", "macro", *scores["per_label"]))
    lines.append(f"{'':{width}}  {'P':>6} {'R':>6} {'F1':>6} {'gold':>7} {'found':>7} {'right':>7}")
    counts = ("gold", "predicted", "correct")
    for name, row in {"micro": scores, **scores["per_label"]}.items():
        figures = " ".join(percent(row[key]) for key in ("precision", "recall", "f1"))
        lines.append(f"{name:{width}}  {figures} " + " ".join(f"{row[key]:7d}" for key in counts))
    macro = " ".join(percent(scores[f"macro_{key}"]) for key in ("precision", "recall", "f1"))
    lines += [f"{'macro':{width}}  {macro}{interval}", _coverage_line(result["coverage"])]
    if result["seqeval"] is not None:
        verdict = "agrees" if result["seqeval"]["agrees"] else "DISAGREES"
        lines.append(f"seqeval, strict IOB2: F1 {percent(result['seqeval']['f1'])}, {verdict}")
    if result["nervaluate"] is not None:
        parts = (f"{scheme} {percent(row['f1'])}" for scheme, row in result["nervaluate"].items())
        lines.append("nervaluate F1: " + ", ".join(parts))
    error = result["reliability"]["expected_calibration_error"]
    lines.append(
        f"calibration error {'-' if error is None else f'{error:.3f}'}; "
        f"{result['speed']['examples_per_second']:.1f} examples/s"
    )
    return "\n".join(lines)


def percent(value: float) -> str:
    """Returns a fraction in percent, six characters wide."""
    return f"{100.0 * value:6.2f}"


def _coverage_line(coverage: Mapping[str, int]) -> str:
    total = sum(coverage.values())
    share = 100.0 * coverage["candidate"] / total if total else 100.0
    others = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in coverage.items() if kind != "candidate")
    return f"coverage: {coverage['candidate']} of {total} gold spans are candidates ({share:.2f} %); {others}"
