"""Mentions of names in running text, sentence by sentence, with what an article itself says of its names.

In: an article and a `NameDictionary`. Out: `Sentence`s, each with all its mentions; a sentence in which a capitalised
word is left over is not given out: what is not a mention in one that is, is no name.
Knows nothing of files or of which sentences are wanted.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .dictionary import UNQUOTED_WORKS, NameDictionary, WordCounts
from .patterns import ROMAN, Lists, NamePatterns, Span
from .sentences import dates_and_amounts
from .taxonomy import TOKEN, Taxonomy, name_of_title, tokenize

LANGUAGE_BEFORE = {"in", "into", "speak", "speaks", "spoke", "speaking", "spoken", "from", "learn", "learned"}
SPEECH = {"speak", "speaks", "spoke", "spoken", "speakers", "languages", "language", "fluent", "translated"}
ONLY_TITLES = {"Major", "Field", "Rear", "Private", "Chief", "Coach", "Count", "Baron", "Saint", "St", "Brother"}
ONLY_TITLES |= {"Sister", "Uncle", "Aunt", "Director", "Father", "Sir", "Dame", "Lord", "Lady", "Justice"}
NO_SALTS = {"provide", "provides", "reside", "resides", "divide", "divides", "decide", "inside", "outside", "beside"}
NO_SALTS |= {"alongside", "side", "sides", "create", "creates", "indicate", "indicates", "operate", "operates", "rate"}
NO_SALTS |= {"rates", "state", "states", "plate", "plates", "late", "dominate", "site", "sites", "despite", "white"}
QUOTED_AT_MOST = 9  # words of a title between quotation marks


@dataclass(frozen=True)
class Sentence:
    """A completely annotated sentence.

    Attributes:
        text: the sentence.
        mentions: (start, end, label), characters, half-open, in order, without overlaps.
    """

    text: str
    mentions: tuple[tuple[int, int, str], ...]


class ArticleMatcher:
    """Finds mentions in one article; what its sentences establish about names holds for those after them."""

    def __init__(self, taxonomy: Taxonomy, names: NameDictionary, counts: WordCounts, lists: Lists) -> None:
        """For the article that `start` names."""
        self.taxonomy, self.names, self.counts, self.lists = taxonomy, names, counts, lists
        self.patterns = NamePatterns(taxonomy, names, counts, lists)
        self.local: dict[str, str | None] = {}
        self.local_longest: dict[str, int] = {}

    def start(self, title: str) -> None:
        """Begins an article: its own name, and a person's last name, are known in it."""
        self.local, self.local_longest = {}, {}
        label, tokens = self.names.titles.get(title), tokenize(name_of_title(title)[0])
        if label is None or not tokens or not tokens[0][0].isupper() or "," in tokens:
            return
        key = " ".join(tokens)
        label = self.lists.names.get(key, label)
        lower = key[:1].lower() + key[1:]
        if len(key) < 3 or "." in tokens or key in self.lists.not_names or lower in self.names.labels:
            return
        if len(tokens) > 1 and all(token.islower() for token in tokens[1:]):
            return
        if len(tokens) > 1 or not self.counts.is_ordinary(tokens[0]):
            self._learn(tokens, label)
        if self.taxonomy.most_general(label) == "person":
            self._learn_last_name(tokens, label)

    def sentence(self, text: str) -> Sentence | None:
        """Returns the sentence with its mentions, or None unless every name in it is known."""
        found = list(TOKEN.finditer(text))
        tokens = [part.group() for part in found]
        spans = self._spans(text, tokens, [part.start() for part in found])
        if spans is None:
            return None
        self._learn_from(tokens, spans)
        if not self._is_complete(tokens, spans, found):
            return None
        mentions = tuple((found[s.start].start(), found[s.end - 1].end(), s.label) for s in spans)
        return Sentence(text, mentions)

    # ---- names that the article establishes

    def _learn(self, tokens: Sequence[str], label: str | None) -> None:
        self.local[" ".join(tokens)] = label
        self.local_longest[tokens[0]] = max(self.local_longest.get(tokens[0], 0), len(tokens))

    def _learn_last_name(self, tokens: Sequence[str], label: str) -> None:
        words = [token for token in tokens if not ROMAN.match(token)]
        if len(words) < 2 or not words[-1][0].isupper() or len(words[-1]) < 3 or "of" in words or "the" in words:
            return
        last = words[-1]
        known = self.names.labels.get(last)
        if known is not None and self.taxonomy.most_general(known) != "person":
            self._learn([last], None)  # either of the two: a sentence with it is not used
        elif last in self.local:
            current = self.local[last]
            self._learn([last], current and self.taxonomy.common([current, label]))
        else:
            self._learn([last], label)

    def _learn_from(self, tokens: Sequence[str], spans: Sequence[Span]) -> None:
        for span in spans:
            words = tokens[span.start : span.end]
            if self.taxonomy.most_general(span.label) == "person" and len(words) > 1:
                self._learn_last_name(words, span.label)
            if len(words) == 1 and words[0].isupper() and tokens[span.start - 1 : span.start] == ["("]:
                self._learn(words, span.label)

    # ---- candidates

    def _spans(self, text: str, tokens: list[str], starts: list[int]) -> list[Span] | None:
        candidates = [*self._dates(text, tokens, starts)]
        quotes = self._quoted(tokens)
        if quotes is None:
            return None
        candidates += quotes
        candidates += self._known(tokens)
        candidates += self.patterns.spans(tokens)
        candidates.sort(key=lambda span: (span.start - span.end, -span.rank, span.start))
        taken = [False] * len(tokens)
        chosen = []
        for span in candidates:
            if not any(taken[span.start : span.end]):
                taken[span.start : span.end] = [True] * (span.end - span.start)
                chosen.append(span)
        chosen += [
            initials for span in chosen if (initials := self._initials(tokens, span)) and not taken[initials.start]
        ]
        return sorted(chosen, key=lambda span: span.start)

    def _initials(self, tokens: list[str], span: Span) -> Span | None:
        """Returns the short form after a name: "National Lute Society (NLS)"."""
        after = tokens[span.end : span.end + 3]
        initials = "".join(word[0] for word in tokens[span.start : span.end] if word[0].isupper())
        if len(initials) < 2 or after != ["(", initials, ")"]:
            return None
        return Span(span.end + 1, span.end + 2, span.label, 0)

    def _dates(self, text: str, tokens: list[str], starts: list[int]) -> Iterator[Span]:
        index = {start: number for number, start in enumerate(starts)}
        ends = {starts[number] + len(token): number + 1 for number, token in enumerate(tokens)}
        for start, end, label in dates_and_amounts(text):
            if start in index and end in ends:
                yield Span(index[start], ends[end], label, 5)

    def _quoted(self, tokens: list[str]) -> list[Span] | None:
        """Works between quotation marks; None if a title's type is unknown or the marks do not pair."""
        marks = [number for number, token in enumerate(tokens) if token == '"']
        if len(marks) % 2:
            return None
        spans = []
        for opening, closing in zip(marks[::2], marks[1::2], strict=True):
            inner = tokens[opening + 1 : closing]
            while inner and inner[-1] in ",.;:":  # American style: the comma stands inside
                inner = inner[:-1]
            if not inner or not any(token[0].isupper() for token in inner):
                continue
            label = self._type_of_quoted(" ".join(inner), tokens, opening)
            if label is not None:
                spans.append(Span(opening + 1, opening + 1 + len(inner), label, 9))
            elif len(inner) <= QUOTED_AT_MOST and inner[0][0].isupper():
                return None
        return spans

    def _type_of_quoted(self, key: str, tokens: list[str], opening: int) -> str | None:
        before = [token.lower() for token in tokens[max(0, opening - 5) : opening] if token not in ",:"]
        if before[-1:] == ["'s"]:
            before = before[:-1]
        stated = self.taxonomy.resolve(before)
        if stated and self.taxonomy.most_general(stated) in ("creative work", "product"):
            return stated
        known = self.names.quoted.get(key) or self.names.labels.get(key) or self.local.get(key)
        return known if known and self.taxonomy.most_general(known) == "creative work" else None

    def _known(self, tokens: list[str]) -> Iterator[Span]:
        names, local = self.names, self.local
        for start, token in enumerate(tokens):
            most = max(names.longest.get(token, 0), self.local_longest.get(token, 0))
            quoted = start > 0 and tokens[start - 1] == '"'
            for count in range(min(most, len(tokens) - start), 0, -1):
                key = token if count == 1 else " ".join(tokens[start : start + count])
                if key in local and (quoted or not self._is_quoted_work(local[key])):
                    label = local[key]
                elif key in names.comma_names:
                    yield Span(start, start + tokens[start:].index(","), names.comma_names[key], 6)
                    continue
                else:
                    label = names.labels.get(key)
                if label is not None:
                    label = self._language(tokens, start, label)
                    yield self._compound(tokens, Span(start, start + count, label, 4 + (key in local)))
                    break

    def _is_quoted_work(self, label: str | None) -> bool:
        return (
            label is not None and label not in UNQUOTED_WORKS and self.taxonomy.most_general(label) == "creative work"
        )

    def _compound(self, tokens: list[str], span: Span) -> Span:
        """Tells whether an element is part of a compound's name: it stands before "oxide", "sulfate", ..."""
        after = tokens[span.end] if span.end < len(tokens) else ""
        if span.label != "chemical element" or not after.endswith(("ide", "ides", "ate", "ates", "ite", "ites")):
            return span
        if after in NO_SALTS:
            return span
        return Span(span.start, span.end + 1, "chemical compound", span.rank)

    def _language(self, tokens: list[str], at: int, label: str) -> str:
        """Returns another label that fits here better: a nationality may be a language; the Mississippi is a river."""
        before, after = tokens[at - 1] if at else "", tokens[at + 1] if at + 1 < len(tokens) else "."
        if label == "US state" and tokens[at] in self.lists.river_states and before.lower() == "the":
            return "river" if after in self.lists.after_name or after == "'s" else label
        if label != "nationality":
            return label
        if after in ("language", "languages", "alphabet", "dialect", "dialects", "grammar"):
            return "language"
        speech = before in LANGUAGE_BEFORE or SPEECH & set(tokens)
        return (
            "language"
            if tokens[at] in self.lists.also_languages and speech and after in self.lists.after_name
            else label
        )

    # ---- is every name known?

    def _is_complete(self, tokens: list[str], spans: list[Span], found: list[re.Match[str]]) -> bool:
        owner: list[Span | None] = [None] * len(tokens)
        for span in spans:
            owner[span.start : span.end] = [span] * (span.end - span.start)
        for before, after in pairwise(spans):
            if before.end == after.start and not self._may_touch(before, after):
                return False
            if tokens[before.end : after.start] == ["and"] and self._may_be_one(tokens, before, after):
                return False
        for at, token in enumerate(tokens):
            if token[0].isupper() and owner[at] is None and not self._may_be_left(tokens, at, owner):
                return False
        return all(part.end() - part.start() < 40 for part in found)

    def _may_touch(self, before: Span, after: Span) -> bool:
        loose = ("nationality", "date", "religious group", "ethnic group", "political organization")
        return before.label in loose or after.label == "date"

    def _may_be_one(self, tokens: list[str], before: Span, after: Span) -> bool:
        """Tells whether "Bath and Wells Railway" may be one name."""
        built = after.label == self.lists.heads.get(tokens[after.end - 1]) and after.end - after.start > 1
        return built and before.end - before.start == 1 and self.taxonomy.most_general(before.label) == "location"

    def _may_be_left(self, tokens: list[str], at: int, owner: list[Span | None]) -> bool:
        token = tokens[at]
        if token == "I" or (at == 0 and self._is_sentence_word(tokens, owner)):
            return True
        if token not in self.lists.titles:
            return False
        following = next((i for i in range(at + 1, len(tokens)) if tokens[i] not in self.lists.titles | {"."}), None)
        person = following is not None and owner[following] is not None
        person = person and self.taxonomy.most_general(owner[following].label) == "person"  # type: ignore[union-attr,index]
        return bool(person) or token not in ONLY_TITLES

    def _is_sentence_word(self, tokens: list[str], owner: list[Span | None]) -> bool:
        if tokens[0].lower() in self.lists.functions:
            return True
        alone = len(tokens) < 2 or not (tokens[1][0].isdigit() or (owner[1] is not None and tokens[1][0].isupper()))
        return alone and self.counts.is_ordinary(tokens[0])
