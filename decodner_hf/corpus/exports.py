"""Hands results to other tools: spaCy's displaCy, Label Studio.

In: a text and its entities as the pipeline returns them. Out: plain values that the tool reads.
Imports neither tool.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, TypedDict

from ..core.pipeline_io import EntityRow
from ..core.words import split_words
from .records import Entities


class DisplacyDocument(TypedDict, total=False):
    """What displaCy renders with `manual=True`."""

    text: str
    title: str | None
    ents: list[dict[str, object]]
    tokens: list[str]
    spans: list[dict[str, object]]


class LabelStudioTask(TypedDict):
    """A task with a prediction, as Label Studio imports it."""

    data: dict[str, object]
    predictions: list[dict[str, object]]


def to_displacy(
    text: str, entities: Entities, *, style: Literal["ent", "span"] = "ent", title: str | None = None
) -> DisplacyDocument:
    """Returns a document for `spacy.displacy.render(document, style=style, manual=True)`.

    Args:
        text: the document.
        entities: what the pipeline found in it.
        style: "ent" for entities that do not overlap; "span" shows any, over the words of this package.
        title: shown above the text.

    Raises:
        ValueError: entities that overlap with style "ent", rows per word instead of entities, or another style.
    """
    ordered = _ordered(entities)
    if style == "ent":
        for one, other in pairwise(ordered):
            if other["start"] < one["end"]:
                raise ValueError(
                    f"{one['word']!r} and {other['word']!r} overlap, which displaCy's style 'ent' cannot show: "
                    "use style='span' here and in displacy.render."
                )
        ents: list[dict[str, object]] = [
            {"start": entity["start"], "end": entity["end"], "label": entity["entity_group"]} for entity in ordered
        ]
        return {"text": text, "ents": ents, "title": title}
    if style != "span":
        raise ValueError(f"style must be 'ent' or 'span', not {style!r}.")
    starts, ends = split_words(text)
    spans: list[dict[str, object]] = []
    for entity in ordered:
        first = int(ends.searchsorted(entity["start"], side="right"))
        last = int(starts.searchsorted(entity["end"], side="left"))
        spans.append({"start_token": first, "end_token": last, "label": entity["entity_group"]})
    tokens = [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return {"text": text, "tokens": tokens, "spans": spans, "title": title}


def to_label_studio(
    text: str,
    entities: Entities,
    *,
    from_name: str = "label",
    to_name: str = "text",
    model_version: str = "decodner",
    data: Mapping[str, object] | None = None,
) -> LabelStudioTask:
    """Returns a task with the entities as a prediction, for Label Studio's import of JSON (a list of such tasks).

    Its labelling configuration must have `<Labels name="label" toName="text">` and
    `<Text name="text" value="$text"/>`, or the names given here. Offsets are in Unicode characters, as here.

    Args:
        text: the document.
        entities: what the pipeline found in it, overlapping or not.
        from_name: name of the `Labels` tag.
        to_name: name of the `Text` tag, and of the field of the task's data that holds the text.
        model_version: shown beside the prediction.
        data: further fields of the task's data, an id for instance.

    Raises:
        ValueError: rows per word instead of entities, or `data` with a field of the text's name.
    """
    if data is not None and to_name in data:
        raise ValueError(f"data has a field {to_name!r}, which is the text's: name the text's otherwise by to_name.")
    result = [
        {
            "id": f"e{number}",
            "from_name": from_name,
            "to_name": to_name,
            "type": "labels",
            "score": entity["score"],
            "value": {
                "start": entity["start"],
                "end": entity["end"],
                "text": text[entity["start"] : entity["end"]],
                "labels": [entity["entity_group"]],
            },
        }
        for number, entity in enumerate(_ordered(entities), 1)
    ]
    prediction: dict[str, object] = {"model_version": model_version, "result": result}
    if entities:
        prediction["score"] = min(entity["score"] for entity in entities)
    return {"data": {to_name: text, **(data or {})}, "predictions": [prediction]}


def _ordered(entities: Entities) -> list[EntityRow]:
    if any("entity_group" not in entity for entity in entities):
        raise ValueError(
            "these rows are no entities: they have no 'entity_group'. Call the pipeline with "
            "aggregation_strategy='simple', and pass the list of one text."
        )
    return sorted(entities, key=lambda entity: (entity["start"], -entity["end"]))
