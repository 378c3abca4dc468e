"""Scores the same predictions with other packages: seqeval (strict IOB2) and nervaluate (partial matches).

In: gold and predicted `SpanTable`s. Out: plain dicts, None where the package is not installed.
Knows nothing of models or files.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from .span_metrics import SpanTable

PARTIAL_SCHEMES = ("strict", "exact", "partial", "ent_type")


def optional(module: str) -> Any:
    """Returns the module, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        return None


def iob2_tags(gold: SpanTable, predicted: SpanTable) -> tuple[list[list[str]], list[list[str]]]:
    """Returns both sides as IOB2 tags, a tag for each stretch between neighbouring bounds of either side's spans.

    Labels become their numbers, since seqeval trims hyphens off names.
    """
    sides = []
    examples = range(gold.num_examples)
    cuts = [np.searchsorted(table.example, np.arange(gold.num_examples + 1)).tolist() for table in (gold, predicted)]
    tables = [np.stack([table.start, table.end, table.label], axis=1) for table in (gold, predicted)]
    rows = [[table[cut[e] : cut[e + 1]] for e in examples] for table, cut in zip(tables, cuts, strict=True)]
    bounds = [np.unique(np.concatenate([rows[0][e][:, :2], rows[1][e][:, :2]])) for e in examples]
    for side in rows:
        tags = [["O"] * max(len(points) - 1, 1) for points in bounds]
        for example, spans in enumerate(side):
            places = np.searchsorted(bounds[example], spans[:, :2]).tolist()
            for (first, last), label in zip(places, spans[:, 2].tolist(), strict=True):
                tags[example][first:last] = [f"B-{label}"] + [f"I-{label}"] * (last - first - 1)
        sides.append(tags)
    return sides[0], sides[1]


def seqeval_scores(gold: SpanTable, predicted: SpanTable) -> dict[str, float] | None:
    """Returns micro figures of seqeval's strict mode; None where spans overlap or seqeval is not installed."""
    metrics, scheme = optional("seqeval.metrics"), optional("seqeval.scheme")
    if metrics is None or not gold.is_flat or not predicted.is_flat:
        return None
    tags = iob2_tags(gold, predicted)
    names = ("precision", "recall", "f1")
    return {
        name: float(getattr(metrics, f"{name}_score")(*tags, mode="strict", scheme=scheme.IOB2, zero_division=0))
        for name in names
    }


def nervaluate_scores(
    gold: SpanTable, predicted: SpanTable, labels: Sequence[str]
) -> dict[str, dict[str, float]] | None:
    """Returns figures and counts of nervaluate's four schemes; None where it is not installed."""
    nervaluate = optional("nervaluate")
    if nervaluate is None:
        return None
    sides = []
    for table in (gold, predicted):
        side: list[list[dict[str, Any]]] = [[] for _ in range(gold.num_examples)]
        for example, start, end, label in table.rows.tolist():
            side[example].append({"label": labels[label], "start": start, "end": end - 1})  # its ends are inclusive
        sides.append(side)
    overall = nervaluate.Evaluator(*sides, tags=list(labels), loader="dict").evaluate()["overall"]
    fields = ("precision", "recall", "f1", "correct", "incorrect", "partial", "missed", "spurious")
    return {scheme: {field: getattr(overall[scheme], field) for field in fields} for scheme in PARTIAL_SCHEMES}
