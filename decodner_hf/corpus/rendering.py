"""Shows a text with its entities: as a table for the terminal, as CoNLL or JSON lines.

In: a text and its entities as the pipeline returns them (`entity_group, score, word, start, end`). Out: strings.
Knows nothing of files or models.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise

from ..core.words import split_words
from .records import Entities

COLUMNS = ("entity", "score", "start", "end", "text")


def printable(text: str) -> str:
    """Returns `text` on one line, control characters and lone surrogates as escapes, safe for a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def table(entities: Entities) -> str:
    """Returns aligned columns with a header, one entity a line; an empty string where there is no entity."""
    if not entities:
        return ""
    rows = [COLUMNS] + [
        (
            printable(str(entity["entity_group"])),
            f"{entity['score']:.4f}",
            str(entity["start"]),
            str(entity["end"]),
            printable(entity["word"]),
        )
        for entity in entities
    ]
    label, score, start, end = (max(len(row[column]) for row in rows) for column in range(4))
    return "".join(f"{a:<{label}}  {b:>{score}}  {c:>{start}}  {d:>{end}}  {e}\n" for a, b, c, d, e in rows)


def json_lines(documents: Iterable[tuple[str, Mapping[str, object]]], warn: Callable[[str], None]) -> Iterator[str]:
    """Yields a line of JSON for each (place, document); NaN and infinity become null; warns once.

    Raises:
        ValueError: a document that is nested too deeply; its place is named.
    """
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str).encode
    warned = False
    for place, document in documents:
        try:
            yield encode(document) + "\n"
        except ValueError:
            if not warned:
                warn(f"{place}: JSON has no NaN and no infinity; they are written as null, here and below")
            warned = True
            yield encode(_finite(document)) + "\n"
        except RecursionError as error:
            raise ValueError(f"{place} is nested too deeply to be written.") from error


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def conll_block(text: str, entities: Entities, fields: Mapping[str, object] | None = None) -> str:
    """Returns one document as CoNLL: a -DOCSTART- line, then `word TAB tag` lines, an empty line after each part.

    Words are those that candidate spans are made of; white space inside a word is left out. What else is known of the
    document stands as JSON in a middle column of its -DOCSTART- line.

    Raises:
        ValueError: entities that overlap, which one tag a word cannot say, or labels that would break a line.
    """
    starts, ends = (bounds.tolist() for bounds in split_words(text))
    ordered = sorted(entities, key=lambda entity: entity["start"])
    for one, other in pairwise(ordered):
        if other["start"] < one["end"]:
            raise ValueError(
                f"{one['word']!r} and {other['word']!r} overlap, which CoNLL cannot express: use --overlap flat."
            )
    broken = next((entity["entity_group"] for entity in entities if not entity["entity_group"].isprintable()), None)
    if broken is not None:
        raise ValueError(
            f"the label {broken!r} holds a tab, a line end or the like, which CoNLL cannot: write .jsonl."
        )
    known = f"\t{json.dumps(fields, default=str)}" if fields else ""
    lines = [f"-DOCSTART-{known}\tO\n\n"]
    position = 0
    for start, end in zip(starts, ends, strict=True):
        while position < len(ordered) and ordered[position]["end"] <= start:
            position += 1
        tag = "O"
        if position < len(ordered) and ordered[position]["start"] < end:
            begins = ordered[position]["start"] >= start
            tag = f"{'B' if begins else 'I'}-{ordered[position]['entity_group']}"
        lines.append(f"{''.join(text[start:end].split()) or '_'}\t{tag}\n")
    return "".join(lines) + "\n" * (len(lines) > 1)
