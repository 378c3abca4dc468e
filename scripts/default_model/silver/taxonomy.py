"""Reads the taxonomy of types, tokenizes, and finds the type phrase of definitions: "X is a ...".

In: `taxonomy.json`, sentences and titles. Out: `Taxonomy`, tokens, type phrases and their types.
Knows nothing of a corpus, of names or of mentions in running text.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

TAXONOMY = Path(__file__).with_name("taxonomy.json")
# Dotted initials; words, hyphenated and with an apostrophe; a possessive "'s"; anything else by itself.
TOKEN = re.compile(
    r"(?:[A-Z]\.)+(?![^\W\d_])"
    r"|[^\W_]+(?:-(?=[A-Z0-9])[^\W_]+|['\u2019](?!s\b)[^\W_]+|&(?=[A-Z])[^\W_]+)*|['\u2019]s\b|\S"
)
COPULA = re.compile(r"\b(?:is|was|are|were)\s+(?:also\s+)?(?:one of (?:the|several|many)|an?|the|another)\s+")
PARENTHESES = re.compile(r"\s*\([^()]*\)")
JOINED = {"rock and roll": "rock-and-roll", "rhythm and blues": "rhythm-and-blues", "drum and bass": "drum-and-bass"}
CLASSIFIERS = {"species", "genus", "family", "subspecies", "type", "kind", "form", "breed", "style", "genre"}


def tokenize(text: str) -> list[str]:
    """Returns the words and marks of `text`."""
    return TOKEN.findall(text)


@dataclass(frozen=True)
class Taxonomy:
    """The types and word lists of `taxonomy.json`.

    Attributes:
        types: label -> its ancestors, the nearest first.
        aliases: label -> other names of the type.
        lists: the word lists by their names in the file.
    """

    types: dict[str, list[str]]
    aliases: dict[str, list[str]]
    lists: dict[str, dict[str, str] | list[str]] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> "Taxonomy":
        """Reads the file; a label without a type is a ValueError."""
        values = json.loads(path.read_text(encoding="utf-8"))
        taxonomy = cls(values.pop("types"), values.pop("aliases"), values)
        used = {ancestor for ancestors in taxonomy.types.values() for ancestor in ancestors} | set(taxonomy.aliases)
        used |= {label for words in values.values() if isinstance(words, dict) for label in words.values()}
        if unknown := sorted(used - set(taxonomy.types)):
            raise ValueError(f"{path} names {unknown}, which its types do not hold: add them to its types.")
        return taxonomy

    @cached_property
    def phrases(self) -> dict[str, str]:
        """Types and aliases -> label."""
        named = {alias: label for label, aliases in self.aliases.items() for alias in aliases}
        return named | {label: label for label in self.types}

    def names(self, kind: str) -> dict[str, str]:
        """Returns a list of names with labels."""
        found = self.lists[kind]
        assert isinstance(found, dict)
        return found

    def words(self, kind: str) -> frozenset[str]:
        """Returns a list of words."""
        return frozenset(self.lists[kind])

    def most_general(self, label: str) -> str:
        """Returns the farthest ancestor: "guitarist" -> "person"."""
        ancestors = self.types.get(label)
        return ancestors[-1] if ancestors else label

    def is_a(self, label: str, ancestor: str) -> bool:
        """Tells whether `label` is `ancestor` or below it."""
        return label == ancestor or ancestor in self.types.get(label, ())

    def common(self, labels: Sequence[str]) -> str | None:
        """Returns the finest type for all labels: of two on one branch the finer, of many the nearest they share."""
        lines = sorted(([label, *self.types.get(label, [])] for label in labels), key=len, reverse=True)
        if all(line[0] in lines[0] for line in lines):
            return lines[0][0]
        return next((label for label in lines[0] if all(label in line for line in lines)), None)

    def resolve(self, words: Sequence[str]) -> str | None:
        """Returns the type that the end of the phrase names: "indie rock band" -> "rock band"."""
        for count in range(min(4, len(words)), 0, -1):
            phrase = " ".join(words[-count:])
            if label := self.phrases.get(phrase) or self.phrases.get(phrase.removesuffix("s")):
                return label
        return None


def definition_phrase(sentence: str, taxonomy: Taxonomy) -> tuple[str, list[str]] | None:
    """Returns the subject of "X is a ... HEAD of ..." and the words up to its head, or None without such a head.

    A classifier ("a species of") gives way to what is after its "of"; both stay in the words.
    """
    flat = PARENTHESES.sub("", sentence)
    for compound, joined in JOINED.items():
        flat = flat.replace(compound, joined)
    found = COPULA.search(flat)
    if not found:
        return None
    words: list[str] = []
    ends = taxonomy.words("phrase_ends")
    for word in tokenize(flat[found.end() : found.end() + 160]):
        if word == "of" and words and words[-1] in CLASSIFIERS:
            continue
        if (word in ends and words) or not (word[0].isalnum() or word == "-"):
            break
        words.append(word)
    return (flat[: found.start()].strip(' ,"'), words) if words else None


def head_phrase(words: Sequence[str], taxonomy: Taxonomy) -> tuple[str, bool] | None:
    """Returns a definition's type and whether the taxonomy knows it; an unknown one is its last two words, or None."""
    lower = [word for word in words if word != "-" and not word[0].isdigit()]
    no_types = taxonomy.words("not_types")
    for end in range(len(lower), 0, -1):  # a name after a type is none of its words
        ends = end == len(lower) or lower[end][0].isupper()
        if ends and (label := taxonomy.resolve(lower[:end])) and lower[end - 1] not in no_types:
            return label, True
    if not lower or not lower[-1].islower() or not lower[-1].isalpha() or lower[-1] in no_types:
        return None
    known = [word for word in lower[-2:] if word.islower() and word.isalpha()]
    return " ".join(known), False


def name_of_title(title: str) -> tuple[str, bool]:
    """Returns a title without its qualifier, and whether it had one: "Home (film)" -> "Home", True."""
    bare = re.sub(r"\s*\([^()]*\)$", "", title)
    return bare, bare != title
