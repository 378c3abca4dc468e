"""Writes the part of a trained model's card on its training: data, licences, metrics, settings.

In: the model's configuration and a `TrainingRecord`. Out: README.md, and the same as training.json for programs.
Knows nothing of tensors or of how training works.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from ..core.configuration import DecodNERConfig
from ..core.hub import write_model_card
from ..evaluation.markdown import markdown_table
from .sources import TrainingSource


@dataclass(frozen=True)
class TrainingRecord:
    """How a model was trained.

    Attributes:
        sources: what it was trained on.
        dropped: per source the number of examples left out because they overlap an evaluation set.
        metrics: span precision, recall and F1 on the dev examples, from 0 to 1; empty without any.
        dev: name of the dev examples; None without any.
        dev_split: the split they are.
        settings: the options that matter.
        licence: of the model.
    """

    sources: Sequence[TrainingSource]
    dropped: Mapping[str, int]
    metrics: Mapping[str, float]
    dev: str | None
    dev_split: str
    settings: Mapping[str, object]
    licence: str | None


def write_training_card(config: DecodNERConfig, directory: Path, record: TrainingRecord) -> None:
    """Writes the card (in place of one that is there) and training.json."""
    path = directory / "README.md"
    path.unlink(missing_ok=True)
    write_model_card(config, str(directory))
    card = ModelCard.load(path)
    if record.licence:
        card.data.license = record.licence
    if record.metrics and record.dev:
        results = [
            EvalResult(
                "token-classification", record.dev, record.dev, metric, round(value, 4), dataset_split=record.dev_split
            )
            for metric, value in record.metrics.items()
        ]
        card.data["model-index"] = eval_results_to_model_index(directory.resolve().name, results)
    card.text += "\n".join(["", *_data(record), *_metrics(record), *_settings(record)]) + "\n"
    card.save(path)
    values = {
        "sources": [
            {"name": s.name, "examples": len(s.examples), "types": len(s.labels), "licence": s.licence}
            for s in record.sources
        ],
        "dropped": dict(record.dropped),
        "metrics": dict(record.metrics),
        "settings": dict(record.settings),
    }
    (directory / "training.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _data(record: TrainingRecord) -> list[str]:
    rows = [(s.name, f"{len(s.examples):,}", f"{len(s.labels):,}", s.licence or "") for s in record.sources]
    table = markdown_table(("source", "examples", "types", "licence"), rows, words=(0, 3))
    lines = ["## Training data", "", table]
    if record.dropped:
        parts = ", ".join(f"{count:,} of {name}" for name, count in record.dropped.items())
        lines += ["", f"Left out because they share ten words in a row with an evaluation set: {parts}."]
    return [*lines, ""]


def _metrics(record: TrainingRecord) -> list[str]:
    if not record.metrics:
        return []
    values = ", ".join(f"{name} {100 * value:.1f}" for name, value in record.metrics.items())
    return ["## Exact spans on the dev examples", "", f"{record.dev}: {values}.", ""]


def _settings(record: TrainingRecord) -> list[str]:
    return ["## Settings", "", *(f"- {name.replace('_', ' ')}: {value}" for name, value in record.settings.items())]
