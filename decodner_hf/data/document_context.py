"""Joins sentences with the text around them in their document.

In: labelled examples that know their document, and a `Context`. Out: `Passage`s, each read as one text, with the parts
of them that are the examples. Entities are looked for in those parts only: the task stays that of the sentences.
Knows nothing of tokenizers or models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from ..core.arrays import BoolArray, IntArray
from ..core.spans import CandidateSpans
from ..core.validation import check_count
from ..core.words import split_texts
from .examples import Example, word_starts

CONTEXTS = ("document", "preceding")


@dataclass(frozen=True)
class Context:
    """How much of its document a sentence is read with.

    Attributes:
        kind: "document" joins the sentences of a document into passages of up to `words` words, which are read as one
            text; "preceding" reads every sentence by itself, after the `words` words before it.
        words: see `kind`; at least 1.
    """

    kind: str
    words: int

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.kind not in CONTEXTS:
            raise ValueError(f"the context must be one of {', '.join(CONTEXTS)}, not {self.kind!r}.")
        check_count("the words of a context", self.words)

    @classmethod
    def of(cls, kind: str, words: int) -> "Context | None":
        """Returns the context of this kind, or None for "sentence"."""
        return None if kind == "sentence" else cls(kind, words)


@dataclass(frozen=True)
class Passage:
    """Consecutive sentences of one document, read as one text.

    Attributes:
        example: their joined words or texts; its entities are its members', with shifted offsets.
        members: index of each sentence whose entities are looked for, in the list of examples.
        starts: where each member begins in the joined content, in words or characters as the content is.
        character_bounds: (start, end) of each member in the joined text, half-open; candidates lie within one.
    """

    example: Example
    members: tuple[int, ...]
    starts: tuple[int, ...]
    character_bounds: tuple[tuple[int, int], ...]

    @property
    def is_one(self) -> bool:
        """Whether it is a single sentence and nothing else."""
        return self.character_bounds == ((0, len(self.example.text)),)

    def member_of(self, start: IntArray) -> IntArray:
        """Returns [S]: the member, counted from 0, that holds each character; -1 before the first member."""
        starts = np.array(self.character_bounds, np.int64)[:, 0]
        return np.searchsorted(starts, start, side="right") - 1

    def within_members(self, start: IntArray, end: IntArray) -> BoolArray:
        """Returns [S]: whether each span of characters, half-open, lies within one member."""
        member, ends = self.member_of(start), np.array(self.character_bounds, np.int64)[:, 1]
        inside: BoolArray = (member >= 0) & (end <= ends[member])
        return inside

    def own_candidates(self, candidates: CandidateSpans) -> CandidateSpans:
        """Returns those of the passage's candidates that lie within one member."""
        if self.is_one:
            return candidates
        return candidates.select(self.within_members(candidates.start, candidates.end))


def passages_of(examples: Sequence[Example], context: Context | None = None) -> list[Passage]:
    """Returns the passages in which examples are read; every example is a member of exactly one, in order.

    Without a context each is read alone, as are those without a document. With "document", a document of more words
    is cut between sentences into passages of about equal size, and a longer sentence is a passage by itself.

    Raises:
        ValueError: a document of both texts and word lists.
    """
    passages = []
    for _, group in groupby(enumerate(examples), lambda item: item[1].document or item[0]):
        members = list(group)
        if context is not None and len({type(example.content) for _, example in members}) > 1:
            raise ValueError(f"document {members[0][1].document!r} mixes texts and word lists.")
        if context is None:
            passages += [_joined([member]) for member in members]
        elif context.kind == "preceding":
            passages += _with_preceding(members, context.words)
        else:
            sizes = _word_counts([example for _, example in members])
            passages += [_joined(members[run.start : run.stop]) for run in _cut(sizes, context.words)]
    return passages


def _with_preceding(members: Sequence[tuple[int, Example]], num_words: int) -> Iterator[Passage]:
    """Yields each member after the last `num_words` words of the members before it."""
    words: list[str] = []
    text = ""
    for index, example in members:
        content: str | list[str]
        if isinstance(example.content, list):
            content = [*words, *example.content]
            shift, characters = len(words), sum(map(len, words)) + len(words)
            words = content[-num_words:]
        else:
            content = f"{text} {example.content}" if text else example.content
            shift = characters = len(content) - len(example.content)
            starts, _, _ = split_texts([content])
            text = content[starts[-num_words] :] if len(starts) > num_words else content
        entities = tuple((start + shift, end + shift, label) for start, end, label in example.entities)
        joined = replace(example, content=content, entities=entities)
        yield Passage(joined, (index,), (shift,), ((characters, len(joined.text)),))


def _word_counts(examples: Sequence[Example]) -> list[int]:
    """Number of words of examples that are all texts or all lists of words."""
    texts = [example.content for example in examples if isinstance(example.content, str)]
    if texts:
        _, _, counts = split_texts(texts)
        return [int(count) for count in counts]
    return [len(example.content) for example in examples]


def _cut(sizes: Sequence[int], max_words: int) -> Iterator[range]:
    """Yields runs of items of at most `max_words` together (or a single larger one), of about equal size."""
    goal = sum(sizes) / max(1, -(-sum(sizes) // max_words))
    start, filled = 0, 0
    for index, size in enumerate(sizes):
        if index > start and (filled + size > max_words or filled + size / 2 > goal):
            yield range(start, index)
            start, filled = index, 0
        filled += size
    if start < len(sizes):
        yield range(start, len(sizes))


def _joined(members: Sequence[tuple[int, Example]]) -> Passage:
    parts = [example for _, example in members]
    characters = word_starts([part.text for part in parts])
    words = [0]
    for part in parts:
        words.append(words[-1] + len(part.content))
    in_words = isinstance(parts[0].content, list)
    starts = words[:-1] if in_words else characters
    content: str | list[str] = " ".join(part.text for part in parts)
    if in_words:
        content = [word for part in parts for word in part.content]
    entities = tuple(
        (start + shift, end + shift, label)
        for part, shift in zip(parts, starts, strict=True)
        for start, end, label in part.entities
    )
    example = Example(content, entities, parts[0].document, any(part.partial for part in parts))
    bounds = tuple((start, start + len(part.text)) for part, start in zip(parts, characters, strict=True))
    return Passage(example, tuple(index for index, _ in members), tuple(starts), bounds)
