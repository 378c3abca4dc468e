"""Documents on their way through the pipeline, and their entities as users get them.

In: an `Entity` and the document it was found in. Out: dicts of plain Python values.
Knows nothing of models, scores or thresholds.
"""

from dataclasses import dataclass
from typing import Any

from .decoding import Entity
from .requests import Labels
from .scoring import num_nodes
from .spans import EncodedDocument


@dataclass(frozen=True)
class Prepared:
    """One document, encoded: as a whole, and as the windows that are scored (mostly just itself)."""

    labels: Labels
    is_split: bool
    document: EncodedDocument
    windows: list[EncodedDocument]
    truncated_at: int | None = None

    @property
    def num_nodes(self) -> int:
        """Forest nodes of all windows."""
        return sum(num_nodes(window) for window in self.windows)


def entity_rows(entity: Entity, prepared: Prepared) -> list[dict[str, Any]]:
    """One dict: the entity as a whole."""
    row: dict[str, Any] = {"entity_group": entity.label, "score": entity.score}
    row |= {"word": prepared.document.text[entity.start : entity.end], "start": entity.start, "end": entity.end}
    if prepared.is_split:
        row |= {"start_word": entity.start_word, "end_word": entity.end_word}
    return [_marked(row, entity, prepared)]


def word_rows(entity: Entity, prepared: Prepared) -> list[dict[str, Any]]:
    """One dict a word of the entity, B- on the first and I- on the others."""
    document = prepared.document
    rows: list[dict[str, Any]] = []
    for index in range(entity.start_word, entity.end_word):
        start = max(int(document.word_starts[index]), entity.start)
        end = min(int(document.word_ends[index]), entity.end)
        row = {"entity": f"{'I' if rows else 'B'}-{entity.label}", "score": entity.score, "index": index}
        rows.append(_marked(row | {"word": document.text[start:end], "start": start, "end": end}, entity, prepared))
    return rows


def _marked(row: dict[str, Any], entity: Entity, prepared: Prepared) -> dict[str, Any]:
    if entity.scores is not None:
        row["scores"] = entity.scores
    if prepared.truncated_at is not None:
        row["truncated_at"] = prepared.truncated_at
    return row
