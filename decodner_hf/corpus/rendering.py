"""Shows a text with its entities: as a table for the terminal, as HTML, as CoNLL or JSON lines.

In: a text and its entities as the pipeline returns them (`entity_group, score, word, start, end`). Out: strings.
Knows nothing of files or models.
"""

import html
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..core.words import split_words

Entities = Sequence[Mapping[str, Any]]

COLUMNS = ("entity", "score", "start", "end", "text")

HTML_HEAD = """<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<title>Entities</title>
<style>
body { font: 16px/2.2 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
.fields { color: #555; font-size: 0.8em; line-height: 1.4; margin-top: 1em; overflow-wrap: anywhere; }
.document { white-space: pre-wrap; overflow-wrap: anywhere; border-bottom: 1px solid #ddd; padding: 0.6em 0; }
mark { color: #000; padding: 0.2em 0.3em; border-radius: 0.3em; }
mark b { font-size: 0.65em; margin-left: 0.4em; vertical-align: middle; }
</style>
</head>
<body>
"""
HTML_TAIL = "</body>\n</html>\n"


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


def json_lines(documents: Iterable[tuple[str, Mapping[str, Any]]], warn: Callable[[str], None]) -> Iterator[str]:
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


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def html_block(text: str, entities: Entities, fields: Mapping[str, Any] | None = None) -> str:
    """Returns one document's HTML: entities as coloured marks, inside one another where they nest.

    Of two that cross, the later one is interrupted where the earlier one ends. A mark's label stands at its end.

    Args:
        text: the document.
        entities: what was found in it.
        fields: what else is known of it, shown above.
    """
    opening = sorted(entities, key=lambda entity: (-entity["start"], entity["end"]))  # the next to open is the last
    bounds = sorted({0, len(text), *(entity[side] for entity in entities for side in ("start", "end"))})
    parts: list[str] = []
    stack: list[Mapping[str, Any]] = []
    for here, following in zip(bounds, [*bounds[1:], len(text)], strict=True):
        interrupted = []
        while any(entity["end"] == here for entity in stack):
            entity = stack.pop()
            if entity["end"] == here:
                parts.append(f"<b>{html.escape(str(entity['entity_group']))}</b>")
            else:
                interrupted.append(entity)
            parts.append("</mark>")
        while opening and opening[-1]["start"] == here:
            interrupted.insert(0, opening.pop())
        for entity in reversed(interrupted):
            parts.append(_mark(entity))
            stack.append(entity)
        parts.append(html.escape(text[here:following]))
    shown = ", ".join(f"{html.escape(name)}: {html.escape(_shown(value))}" for name, value in (fields or {}).items())
    above = f'<div class="fields">{shown}</div>\n' if shown else ""
    return f'{above}<div class="document" dir="auto">{"".join(parts)}</div>\n'


def _mark(entity: Mapping[str, Any]) -> str:
    hue = zlib.crc32(str(entity["entity_group"]).encode("utf-8", "replace")) % 360  # one colour a label, everywhere
    title = html.escape(f"{entity['entity_group']} {entity['score']:.4f}")
    return f'<mark style="background: hsl({hue} 70% 82%)" title="{title}">'


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def html_page(documents: Iterable[tuple[str, Entities, Mapping[str, Any]]]) -> Iterator[str]:
    """Yields a page that needs no other file, piece by piece, for (text, entities, other fields) of each document."""
    yield HTML_HEAD
    for text, entities, fields in documents:
        yield html_block(text, entities, fields)
    yield HTML_TAIL


def conll_block(text: str, entities: Entities, fields: Mapping[str, Any] | None = None) -> str:
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
