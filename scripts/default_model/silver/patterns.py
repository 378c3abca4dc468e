"""Finds names that tell their type by their form or context: "University of Oslo", "the band Nirvana", "Ann Lee".

In: the tokens of a sentence. Out: `Span`s that may overlap.
Knows nothing of the article around the sentence.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .dictionary import NameDictionary, WordCounts
from .sentences import MONTHS, YEAR
from .taxonomy import Taxonomy, tokenize

PARTICLES = {"de", "van", "von", "der", "den", "la", "le", "bin", "al", "ibn", "da", "del", "di", "du", "dos", "ter"}
JOINTS = ("of", "for")  # "University of", "Institute for"
ORDINAL = re.compile(r"\d+(?:st|nd|rd|th)$")
ROMAN = re.compile(r"[IVX]+$|Jr\.?$|Sr\.?$")


@dataclass(frozen=True)
class Span:
    """Tokens that may be a mention; of spans of one length the higher rank wins."""

    start: int
    end: int  # exclusive
    label: str
    rank: int


class Lists:
    """The taxonomy's word lists in the form that matching needs."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        """Reads them."""
        self.heads, self.of_heads = taxonomy.names("name_heads"), taxonomy.names("name_heads_of")
        self.starts = taxonomy.names("name_starts")
        self.teams, self.titles = taxonomy.words("team_names"), taxonomy.words("personal_titles")
        self.functions, self.also_languages = taxonomy.words("function_words"), taxonomy.words("also_languages")
        self.after_name = taxonomy.words("after_name")
        self.river_states = taxonomy.words("river_states")
        self.names = {" ".join(tokenize(name)): label for name, label in taxonomy.names("names").items()}
        self.not_names = taxonomy.words("not_names")
        listed = {word for name in self.names for word in name.split(" ")}
        self.not_in_persons = frozenset(self.heads) | frozenset(self.of_heads) | self.teams
        months = frozenset(MONTHS.split("|"))
        self.not_new = self.not_in_persons | frozenset(listed) | self.titles | months | frozenset(self.starts)
        below = ("band", "newspaper", "magazine", "company", "programming language", "record label", "software")
        self.introducing = frozenset(label for label in taxonomy.types if any(taxonomy.is_a(label, b) for b in below))


class NamePatterns:
    """Finds names by their form."""

    def __init__(self, taxonomy: Taxonomy, names: NameDictionary, counts: WordCounts, lists: Lists) -> None:
        """What is known of types and words."""
        self.taxonomy, self.names, self.counts, self.lists = taxonomy, names, counts, lists

    def spans(self, tokens: list[str]) -> Iterator[Span]:
        """What may be names in the tokens of a sentence; they may overlap."""
        yield from self._national_teams(tokens)
        for start, end in self._runs(tokens):
            yield from self._headed(tokens, start, end)
            yield from self._person(tokens, start, end)
            if (span := self._introduced(tokens, start, end)) is not None:
                yield span

    def _runs(self, tokens: list[str]) -> Iterator[tuple[int, int]]:
        """Stretches of capitalised words, without a first word that is no part of a name."""
        start = 0
        while start < len(tokens):
            if not tokens[start][0].isupper() or (start == 0 and tokens[0].lower() in self.lists.functions):
                start += 1
                continue
            end = start + 1
            while end < len(tokens) and (tokens[end][0].isupper() or self._joins(tokens, start, end)):
                end += 1
            yield start, end
            start = end

    def _joins(self, tokens: list[str], start: int, at: int) -> bool:
        """Tells whether a lower-case particle belongs to the person's name around it."""
        if tokens[at] not in PARTICLES or tokens[start] not in self.names.first_names:
            return False
        after = at + 1 + (at + 1 < len(tokens) and tokens[at + 1] in PARTICLES)
        return after < len(tokens) and tokens[after][0].isupper()

    def _headed(self, tokens: list[str], start: int, end: int) -> Iterator[Span]:
        lists = self.lists
        if end - start > 1:
            label = lists.heads.get(" ".join(tokens[end - 2 : end])) if end - start > 2 else None
            label = label or lists.heads.get(tokens[end - 1]) or self._team(tokens, start, end)
            if label is not None:
                before = tokens[start - 1] if start > 0 else ""
                dated = self.taxonomy.is_a(label, "event") and re.fullmatch(YEAR, before)
                yield Span(start - bool(dated or ORDINAL.match(before)), end, label, 3)
            elif label := lists.starts.get(tokens[start]):
                yield Span(start, end, label, 2)
        for count in (3, 2, 1):  # "House of Representatives", "Supreme Court of India", "University of Oslo"
            reach = self._reach(tokens, end)
            whole = " ".join(tokens[end - 1 : reach])
            label = lists.of_heads.get(whole) or lists.of_heads.get(" ".join(tokens[max(start, end - count) : end]))
            if reach > end and label:
                yield Span(start, reach, label, 3)
                return

    def _reach(self, tokens: list[str], end: int) -> int:
        """Returns where the capitalised words after "of" or "of the" end; `end` if there are none."""
        if end >= len(tokens) or tokens[end] not in JOINTS:
            return end
        reach = first = end + 1 + (tokens[end + 1 : end + 2] == ["the"])
        while reach < len(tokens) and tokens[reach][0].isupper():
            reach += 1
        return reach if reach > first else end

    def _team(self, tokens: list[str], start: int, end: int) -> str | None:
        for count in (2, 1):
            place = " ".join(tokens[start : end - count])
            if " ".join(tokens[end - count : end]) in self.lists.teams and place:
                known = self.names.labels.get(place)
                return "sports team" if known and self.taxonomy.most_general(known) == "location" else None
        return None

    def _national_teams(self, tokens: list[str]) -> Iterator[Span]:
        """Yields an "Austrian national ice hockey team", "England national team"."""
        for at in (number for number, token in enumerate(tokens) if token == "national"):
            end = next((i for i in range(at + 1, min(at + 6, len(tokens))) if not tokens[i].islower()), at + 6)
            if "team" in tokens[at:end]:
                start = at - 2 if tokens[at - 1 : at] == ["'s"] else at - 1
                start -= tokens[start : start + 1] in (["men"], ["women"])
                land = self.taxonomy.most_general(self.names.labels.get(tokens[start], "")) if start >= 0 else ""
                if land in ("nationality", "location"):
                    yield Span(start, tokens.index("team", at) + 1, "national team", 6)

    def _person(self, tokens: list[str], start: int, end: int) -> Iterator[Span]:
        """Finds a first and last name, or a last name after a title."""
        names, begin = self.names, start
        while begin < end and (tokens[begin] in self.lists.titles or tokens[begin] == "."):
            begin += 1
        words = tokens[begin:end]
        while words and ROMAN.match(words[-1]):
            words = words[:-1]
        if not words or words[-1] not in names.last_names or self.counts.is_ordinary(words[0]):
            return
        if any(word in self.lists.not_in_persons for word in words[1:]) or len(words) > 5:
            return
        titled = len(words) == 1 and begin > start
        initials = len(words) > 1 and all(re.fullmatch(r"(?:[A-Z]\.)+", word) for word in words[:-1])
        if titled or initials or (len(words) > 1 and words[0] in names.first_names):
            yield Span(begin, end, self._occupation(tokens, start) or "person", 1)

    def _occupation(self, tokens: list[str], start: int) -> str | None:
        stated = self.taxonomy.resolve(tokens[max(0, start - 3) : start])
        return stated if stated and self.taxonomy.is_a(stated, "person") else None

    def _introduced(self, tokens: list[str], start: int, end: int) -> Span | None:
        """Returns a name after its type: "the band Nirvana", "the village of Lucay", "guitarist Yomo Toro"."""
        words = tokens[start:end]
        after = tokens[end] if end < len(tokens) else "."
        if (
            start < 2
            or after not in self.lists.after_name
            or len(words) > 4
            or any(w in self.lists.not_new for w in words)
        ):
            return None
        place = tokens[start - 1] == "of"
        before = tokens[max(0, start - 4) : start - place]
        stated = self.taxonomy.resolve(before)
        if stated is None or any(self.counts.is_ordinary(word) and len(words) < 2 for word in words):
            return None
        if place:
            wanted = self.taxonomy.is_a(stated, "settlement") or self.taxonomy.is_a(stated, "administrative division")
        elif self.taxonomy.is_a(stated, "person"):
            wanted = len(words) > 1 and not any(self.counts.is_ordinary(word) for word in words)
        else:
            wanted = stated in self.lists.introducing
        return Span(start, end, stated, 1) if wanted else None
