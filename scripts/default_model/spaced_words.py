"""Splits texts into words with every punctuation mark separate, as corpora of named entities do.

In: a text and its mentions in characters. Out: words and the mentions in words.
Knows nothing of types or of where the text comes from.
"""

import re
from collections.abc import Sequence
from typing import Any

Mentions = Sequence[tuple[int, int, str]]  # start, end, label; half-open
WORD = re.compile(
    r"(?:[A-Za-z]\.){2,}"
    r"|(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|Prof|Gen|Col|Lt|Capt|Sgt|Rev|Hon|Gov|Sen|Rep|Inc|Ltd|Co|Corp|Bros|vs|No)\."
    r"|(?<![\w.])[A-Z]\.(?= [A-Z])|(?<=[^\W\d_])n['\u2019]t\b|['\u2019](?:s|re|ve|ll|d|m)\b"
    r"|\d+(?:[.,:/-]\d+)*(?:st|nd|rd|th|s)?"
    r"|[^\W_]+?(?=n['\u2019]t\b)|[^\W_]+(?:['\u2019](?!(?:s|re|ve|ll|d|m)\b)[^\W_]+|[-&/][^\W_]+)*|--|\.\.\.|\S"
)


def spaced(text: str, mentions: Mentions) -> tuple[list[str], list[tuple[int, int, str]]] | None:
    """Returns words, and the mentions in words, half-open; None if a mention does not begin and end with a word."""
    found = list(WORD.finditer(text))
    starts = {part.start(): number for number, part in enumerate(found)}
    ends = {part.end(): number + 1 for number, part in enumerate(found)}
    if any(start not in starts or end not in ends for start, end, _ in mentions):
        return None
    words = [part.group() for part in found]
    return words, [(starts[start], ends[end], label) for start, end, label in mentions]


def labelled_lines(texts: Sequence[tuple[str, Mentions]], *, apart: bool) -> list[dict[str, Any]]:
    """Lines of a JSON Lines file, all of one form: words where `apart` and all mentions allow it, else texts."""
    words = [spaced(text, mentions) for text, mentions in texts] if apart else [None]
    if None in words:
        return [{"text": text, "entities": mentions} for text, mentions in texts]
    return [{"tokens": tokens, "entities": mentions} for tokens, mentions in filter(None, words)]
