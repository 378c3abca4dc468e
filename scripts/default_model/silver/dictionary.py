"""Builds a dictionary from names to types, with word counts of the corpus.

In: encyclopedia articles (title and text), (mention, type phrase) pairs and the taxonomy. Out: `WordCounts` and
`NameDictionary`. A name that has readings of different kinds has no entry.
Knows nothing of mentions in running text.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .taxonomy import Taxonomy, definition_phrase, head_phrase, name_of_title, tokenize

PLACE_WORDS = {"in", "at", "near", "from", "to"}
# Places that are seldom meant by their name alone; the name is then only said to be that of a settlement.
SMALL_PLACES = {
    *("unincorporated community", "village", "hamlet", "ward", "census-designated place", "locality", "neighborhood"),
    *("suburb", "borough", "township", "parish", "district", "ghost town", "municipality", "subdivision"),
}
# Kinds whose names may be ordinary lower-case words.
LOWER_CASE_KINDS = {
    *("disease", "music genre", "literary genre", "field of study", "organism", "chemical substance", "theory"),
    *("musical instrument", "sport", "algorithm", "anatomical structure", "medical procedure", "dance"),
}
UNQUOTED_WORKS = {"newspaper", "magazine", "academic journal", "website", "religious text", "media franchise"}
SHORTEST_NAME, LONGEST_NAME = 3, 9  # characters, tokens
RUN = re.compile(r"([a-z]+|[,;]) ((?:[A-Z][\w\u2019'-]*)(?: [A-Z][\w\u2019'-]*)*)")
LOWER_WORD = re.compile(r"(?<![\w-])[a-z][\w\u2019'-]*")


class WordCounts:
    """How often words stand in lower case, capitalised, alone among lower-case words, and after "in", "at", ..."""

    def __init__(self) -> None:
        """No words yet."""
        self.lower: Counter[str] = Counter()
        self.capital: Counter[str] = Counter()
        self.alone: Counter[str] = Counter()
        self.placed: Counter[str] = Counter()

    def add(self, text: str) -> None:
        """Counts a text."""
        self.lower.update(LOWER_WORD.findall(text))
        for before, run in RUN.findall(text):
            words = run.replace("\u2019s", "").replace("'s", "").split(" ")
            self.capital.update(words)
            if len(words) == 1:
                self.alone[words[0]] += 1
                self.placed[words[0]] += before in PLACE_WORDS

    def is_ordinary(self, word: str) -> bool:
        """Tells whether a word is one of the language rather than a name."""
        return self.lower[word.lower()] > self.capital[word]

    def is_word(self, word: str) -> bool:
        """Tells whether a word often stands in lower case."""
        return self.lower[word.lower()] * 5 > self.capital[word]

    def allows_name(self, word: str, *, place: bool) -> bool:
        """Tells whether a capitalised word by itself is nearly always a name, and used as (not) a place's is."""
        alone = self.alone[word]
        if alone < 5 or self.lower[word.lower()] * 20 > self.capital[word] or alone * 3 < self.capital[word]:
            return False
        return self.placed[word] * 3 >= alone if place else self.placed[word] * 6 < alone


@dataclass(frozen=True)
class NameDictionary:
    """Names as tokens joined by spaces.

    Attributes:
        labels: name -> type.
        longest: the first token of names -> the most tokens that one has.
        comma_names: "Frankfort , Kentucky" -> type of what is before the comma.
        quoted: names of works that are only to be believed between quotation marks.
        titles: an article's title -> the type of its subject, where that is known.
        first_names, last_names: of people.
        types: labels that the taxonomy lacks but the dictionary has, with their number of names.
    """

    labels: dict[str, str]
    longest: dict[str, int]
    comma_names: dict[str, str]
    quoted: dict[str, str]
    titles: dict[str, str]
    first_names: frozenset[str]
    last_names: frozenset[str]
    types: dict[str, int]


class DictionaryBuilder:
    """Collects readings of names; `build` decides between them."""

    def __init__(self, taxonomy: Taxonomy, counts: WordCounts, rare_below: int = 30) -> None:
        """An unknown type needs `rare_below` names."""
        self.taxonomy, self.counts, self.rare_below = taxonomy, counts, rare_below
        self.readings: list[tuple[str, str, bool, str, bool, int]] = []

    def add_article(self, title: str, text: str) -> None:
        """Reads an article's definition."""
        opening = text[:400].split("\n", 1)[0]
        name, qualified = name_of_title(title)
        phrase = definition_phrase(opening, self.taxonomy)
        if phrase is None:
            return
        subject, named = tokenize(phrase[0]), tokenize(name)
        if not set(subject) & set(named) or len(subject) > len(named) + 4:  # "Politics of X takes place in what is a"
            return
        lowered = name[:1].lower() + name[1:]
        uses = text[:4000].count(" " + lowered) if name[1:].islower() else 0
        self._add(title, name, qualified, phrase[1], uses)

    def add_pair(self, mention: str, phrase: str) -> None:
        """Takes a mention with a type phrase."""
        self._add(mention, mention, False, tokenize(phrase), -1)

    def _add(self, title: str, name: str, qualified: bool, phrase: list[str], lower_uses: int) -> None:
        if head := head_phrase(phrase, self.taxonomy):
            self.readings.append((title, name, qualified, *head, lower_uses))

    def build(self) -> NameDictionary:
        """Returns the dictionary of all readings and of the taxonomy's own names."""
        unknown = Counter(label for *_, label, known, _ in self.readings if not known)
        kept = {label: count for label, count in unknown.items() if count >= self.rare_below}
        readings = [reading for reading in self.readings if reading[4] or reading[3] in kept]
        first_names, last_names = self._person_names(readings)
        found: dict[str, set[str]] = defaultdict(set)
        commas: dict[str, set[str]] = defaultdict(set)
        quoted: dict[str, set[str]] = defaultdict(set)
        titles: dict[str, set[str]] = defaultdict(set)
        for title, name, qualified, label, _, lower_uses in readings:
            titles[title].add(label)
            tokens = tokenize(name)
            key = " ".join(tokens)
            if "," in tokens:
                commas[key].add(label)
            elif lower_uses > 0 and name[1:].islower():
                lowered = key[0].lower() + key[1:]
                if lower_uses > 1 and self._is_lower_kind(label, lowered) and len(name) > SHORTEST_NAME:
                    found[lowered].add(label)
            elif self._is_work(label):
                quoted[key].add(label)
            elif self._may_stand_alone(tokens, label, qualified, first_names, last_names):
                place = self.taxonomy.most_general(label) == "location"
                if len(tokens) > 1:
                    found[key].add(label)
                elif place:
                    found[key].add("settlement" if label in SMALL_PLACES else label)
                elif lower_uses >= 0:
                    found[key].add(label)
        named = {" ".join(tokenize(name)): label for name, label in self.taxonomy.names("names").items()}
        labels = self._agreed(found) | named
        return NameDictionary(
            labels,
            _longest([*labels, *commas]),
            self._agreed(commas),
            self._agreed(quoted),
            self._agreed(titles),
            first_names,
            last_names,
            kept,
        )

    def _agreed(self, found: dict[str, set[str]]) -> dict[str, str]:
        agreed = {name: self.taxonomy.common(sorted(labels)) for name, labels in found.items()}
        return {name: label for name, label in agreed.items() if label is not None}

    def _is_work(self, label: str) -> bool:
        """Tells whether the type's names stand between quotation marks (for italics) in plain text."""
        return self.taxonomy.most_general(label) == "creative work" and label not in UNQUOTED_WORKS

    def _is_lower_kind(self, label: str, name: str) -> bool:
        """Tells whether a lower-case name of this type is one of a thing, and not itself the name of a type."""
        is_type = self.taxonomy.resolve(name.split(" ")) in (label, "plant", "musical instrument", "tree")
        disease = self.taxonomy.is_a(label, "disease")
        if name in self.taxonomy.words("not_names") or name in self.taxonomy.phrases or (is_type and not disease):
            return False
        return label != "horse" and any(self.taxonomy.is_a(label, kind) for kind in LOWER_CASE_KINDS)

    def _may_stand_alone(
        self, tokens: Sequence[str], label: str, qualified: bool, first: frozenset[str], last: frozenset[str]
    ) -> bool:
        """Tells whether a name in running text can be believed to mean this."""
        general, functions = self.taxonomy.most_general(label), self.taxonomy.words("function_words")
        titles = self.taxonomy.words("personal_titles") if general != "location" else frozenset()
        capital = [token for token in tokens if token[0].isupper() or token[0].isdigit()]
        if not 0 < len(tokens) <= LONGEST_NAME or not tokens[0][0].isupper() or (qualified and general != "person"):
            return False
        if any(token[0].islower() and token not in functions and len(token) > 3 for token in tokens):
            return False
        if " ".join(tokens) in self.taxonomy.words("not_names") or (len(tokens) > 1 and len(tokens[0]) < 2):
            return False
        if len(tokens) == 2 and tokens[0] == "The" and self.counts.is_word(tokens[1]):
            return False
        if general != "person" and len(tokens) == 2 and (tokens[0] in first or tokens[0] in titles):
            return False
        if len(tokens) > 1:
            built = self.taxonomy.names("name_heads").get(tokens[-1])
            if built and self.taxonomy.most_general(built) != general:  # a horse named "Royal Palace"
                return False
            return len(capital) > 1 and not (general != "location" and all(map(self.counts.is_ordinary, tokens)))
        word = tokens[0]
        if len(word) < SHORTEST_NAME or word.isupper() or word in last or word in first:
            return False
        return self.counts.allows_name(word, place=general == "location")

    def _person_names(self, readings: Iterable[tuple[str, str, bool, str, bool, int]]) -> tuple[frozenset[str], ...]:
        first: Counter[str] = Counter()
        last: Counter[str] = Counter()
        other: Counter[str] = Counter()
        heads = self.taxonomy.names("name_heads")
        for _, name, _, label, *_ in readings:
            tokens = tokenize(name)
            if self.taxonomy.most_general(label) != "person" or not 1 < len(tokens) < 5:
                other.update({tokens[0], tokens[-1]})
            elif all(token[0].isupper() for token in (tokens[0], tokens[-1])):
                first[tokens[0]] += 1
                last[tokens[-1]] += 1
        listed = self.taxonomy.names("names")
        return (
            frozenset(w for w, n in first.items() if n > 2 and n > other[w] and w.isalpha() and w not in listed),
            frozenset(
                w for w, n in last.items() if n * 2 > other[w] and len(w) > 2 and w not in heads and w not in listed
            ),
        )


def _longest(names: Iterable[str]) -> dict[str, int]:
    longest: dict[str, int] = {}
    for name in names:
        tokens = name.split(" ")
        longest[tokens[0]] = max(longest.get(tokens[0], 0), len(tokens))
    return longest


def read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """(mention, type phrase) of a JSON Lines file of examples; `load_examples` would load torch, for seconds."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            example = json.loads(line)
            for start, end, phrase in example["entities"]:
                yield example["text"][start:end], phrase
