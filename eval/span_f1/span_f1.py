"""`evaluate.load("./eval/span_f1")`: exact span F1 as a metric of the `evaluate` library; works offline.

In: per example the predicted and the gold spans. Out: what
`decodner_hf.evaluation.span_metrics.span_scores` returns, which is where the counting is done:
this file only fits it to the library.
"""

from typing import Any

import datasets
import evaluate

from decodner_hf.evaluation.span_metrics import SpanTable, span_scores

DESCRIPTION = """\
Precision, recall and F1 of exact spans (start, end and label equal): micro, macro and per label, with counts and, if \
asked for, a bootstrap interval of micro F1. Nested and overlapping spans are allowed.
"""
INPUTS = """\
Args:
    predictions: per example a list of {"start": int, "end": int, "label": str}, end half-open.
    references: likewise; offsets in characters or words, as long as both agree.
    resamples: bootstrap resamples for the 95 % interval of micro F1 (default 0: none).
    seed: of the bootstrap (default 0).
    units: per example the number of its document, which the bootstrap then draws whole (default: examples).
Returns:
    precision, recall, f1, macro_precision, macro_recall, macro_f1, correct, predicted, gold, per_label, and
    f1_interval with resamples.
"""


class SpanF1(evaluate.Metric):
    """Exact span F1."""

    def _info(self) -> evaluate.MetricInfo:
        spans = datasets.List(
            {"start": datasets.Value("int64"), "end": datasets.Value("int64"), "label": datasets.Value("string")}
        )
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": spans, "references": spans}),
        )

    def _compute(
        self,
        predictions: list[list[dict[str, Any]]],
        references: list[list[dict[str, Any]]],
        resamples: int = 0,
        seed: int = 0,
        units: list[int] | None = None,
    ) -> dict[str, Any]:
        sides = [
            [[(span["start"], span["end"], span["label"]) for span in example] for example in side]
            for side in (references, predictions)
        ]
        labels = sorted({label for side in sides for example in side for _, _, label in example})
        gold, predicted = (SpanTable.from_lists(side, labels) for side in sides)
        return span_scores(gold, predicted, labels, units=units, resamples=resamples, seed=seed)
