"""Turns what is on the demo page into the pipeline's arguments, and its answers into HTML, rows and Python code.

In: the fields of the page; entities. Out: arguments, or a ValueError for the reader of the page; strings and rows.
Everything that comes from texts and labels is escaped. Knows nothing of Gradio.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..corpus.html_view import html_block
from ..corpus.records import Entities

if TYPE_CHECKING:
    from ..core.pipeline import DecodNERPipeline

MOST_CHARACTERS = 20_000
MOST_LABELS = 100
COLUMNS = ("entity", "score", "start", "end", "text")
NONE = "no entity"
TEMPLATES = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;"})  # an HTML component would expand them


@dataclass(frozen=True)
class Form:
    """The fields of the page.

    Attributes:
        text: the document.
        labels: one per line, NAME or NAME=DESCRIPTION; the model's own where there are none.
        own_threshold: whether the model's thresholds are used, and not `threshold`.
        threshold: lowest score shown, from 0 to 1.
        overlap: "flat", "nested" or "all".
    """

    text: str
    labels: str
    own_threshold: bool
    threshold: float
    overlap: str

    def candidate_labels(self) -> dict[str, str | None] | None:
        """Returns the labels as the pipeline takes them, None for the model's own.

        Raises:
            ValueError: a line without a name, a label that is named twice, or too many.
        """
        labels: dict[str, str | None] = {}
        for line in self.labels.splitlines():
            name, equals, description = (part.strip() for part in line.partition("="))
            if not name and not equals:
                continue
            if not name:
                raise ValueError(f"the line {line!r} has no name: write NAME or NAME=DESCRIPTION.")
            if name in labels:
                raise ValueError(f"the label {name!r} is named twice.")
            labels[name] = description or None
        if len(labels) > MOST_LABELS:
            raise ValueError(f"{len(labels)} labels: this page takes at most {MOST_LABELS}.")
        return labels or None

    def arguments(self) -> dict[str, Any]:
        """Returns the call's arguments, without those that have the pipeline's own values.

        Raises:
            ValueError: labels that are refused, or a text that is too long.
        """
        if len(self.text) > MOST_CHARACTERS:
            raise ValueError(
                f"the text has {len(self.text):,} characters: this page takes at most {MOST_CHARACTERS:,}."
            )
        threshold = None if self.own_threshold else float(self.threshold)
        chosen = {"candidate_labels": self.candidate_labels(), "threshold": threshold, "overlap": self.overlap}
        return {name: value for name, value in chosen.items() if value is not None}


def highlighted(text: str, entities: Entities) -> str:
    """Returns the text as HTML, its entities marked."""
    return html_block(text, entities).translate(TEMPLATES)


def notice(message: str) -> str:
    """Returns a message as HTML."""
    return f'<p class="notice" role="alert">{html.escape(message)}</p>'.translate(TEMPLATES)


def rows(entities: Entities) -> list[list[Any]]:
    """Returns the table's rows, see `COLUMNS`."""
    return [[e["entity_group"], f"{e['score']:.4f}", e["start"], e["end"], e["word"]] for e in entities]


def label_scores(pipe: "DecodNERPipeline", form: Form, start: int, end: int) -> dict[str, float]:
    """Returns the score of every label for a span, best first, and of `NONE`.

    Args:
        pipe: the pipeline.
        form: the page's fields.
        start: first character of the span.
        end: one past its last one.

    Raises:
        ValueError: a span or labels that the pipeline refuses.
    """
    (entity,) = pipe(
        {"text": form.text, "spans": [(start, end)]},
        candidate_labels=form.candidate_labels(),
        threshold=0.0,
        overlap="all",
        return_all_scores=True,
    ) or [{"scores": {}}]
    scores: dict[str, float] = entity["scores"]
    if not scores:
        raise ValueError(f"the model reads no token of {form.text[start:end]!r}.")
    ordered = dict(sorted(scores.items(), key=lambda item: -item[1]))
    return ordered | {NONE: max(0.0, 1.0 - sum(scores.values()))}


def find_words(form: Form, words: str) -> tuple[int, int]:
    """Returns where words stand first in the text, as characters; a ValueError where they do not."""
    start = form.text.find(words)
    if not words or start < 0:
        raise ValueError(f"{words!r} does not stand in the text: copy a part of it, or click a row of the table.")
    return start, start + len(words)


def bars(scores: Mapping[str, float]) -> str:
    """Returns scores as HTML, a bar each."""
    lines = [
        f'<div class="bar"><span>{html.escape(label)}</span><i style="width: {100 * score:.2f}%"></i>'
        f"<b>{score:.4f}</b></div>"
        for label, score in scores.items()
    ]
    return f'<div class="bars">{"".join(lines)}</div>'.translate(TEMPLATES)


def python_code(form: Form, model: str | None) -> str:
    """Returns a program that prints the entities on the page.

    Args:
        form: the page's fields.
        model: a folder or a Hub id; None for the bundled model.
    """
    named = "" if model is None else f", model={model!r}"
    arguments = "".join(f"    {name}={value!r},\n" for name, value in form.arguments().items())
    return (
        "import decodner_hf\nfrom transformers import pipeline\n\n"
        f'ner = pipeline("decodner-ner"{named})\n'
        f"entities = ner(\n    {form.text!r},\n{arguments})\n"
        "for entity in entities:\n    print(entity)\n"
    )
