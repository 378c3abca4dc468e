"""Reads labelled examples for training and evaluation from files, saved datasets or the Hub.

In: a path or a Hub id. Out: a list of `Example`, checked: every entity lies inside its example.
JSON lines and CoNLL files are read with the standard library alone; everything else needs `datasets`.
Knows nothing of tokenizers, candidate spans or models.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ..core.validation import check_count
from .example_rows import named_source, read_rows
from .label_maps import LabelMap, LabelMapSource
from .tag_schemes import tags_to_entities

Entities = tuple[tuple[int, int, str], ...]

TEXT_COLUMNS = ("text", "sentence")
TOKENS_COLUMNS = ("tokens", "words")
TAGS_COLUMNS = ("ner_tags", "tags")
ENTITIES_COLUMNS = ("entities", "spans")
DOCUMENT_COLUMNS = ("doc", "document", "doc_id", "document_id")
LABEL_KEYS = ("label", "entity_group", "type")


@dataclass(frozen=True)
class Example:
    """One labelled text.

    Attributes:
        content: the text, or its words.
        entities: (start, end, label), half-open, in words where `content` is words and in characters otherwise.
        document: name of the document that it belongs to, where known.
        partial: whether only some entities are labelled, so that spans without a label say nothing.
    """

    content: str | list[str]
    entities: Entities
    document: str | None = None
    partial: bool = False

    @property
    def text(self) -> str:
        """The text that character offsets count in; words are joined by single spaces."""
        return self.content if isinstance(self.content, str) else " ".join(self.content)

    @property
    def character_entities(self) -> Entities:
        """The entities in characters of `text`."""
        if isinstance(self.content, str):
            return self.entities
        starts = word_starts(self.content)
        return tuple(
            (starts[start], starts[end - 1] + len(self.content[end - 1]), label) for start, end, label in self.entities
        )


def load_examples(
    source: str | Path,
    split: str | None = None,
    *,
    text_column: str | None = None,
    tokens_column: str | None = None,
    tags_column: str | None = None,
    entities_column: str | None = None,
    label_map: LabelMapSource | None = None,
    partial: bool = False,
    where: Mapping[str, Sequence[object]] | None = None,
    limit: int | None = None,
) -> list[Example]:
    """Reads the labelled examples of one split.

    Columns are found by their usual names ("tokens" or "text"; "entities" as `[start, end, label]` or objects with
    these keys, or "ner_tags") unless they are named. "dev", "valid" and "validation" stand for one another.

    Args:
        source: a .jsonl, .json, .conll, .txt (CoNLL) or .parquet file, a folder with one such file per split, a folder
            that `datasets` saved, or a Hub id.
        split: which split of a folder or a Hub dataset; a file has none.
        text_column: column of texts.
        tokens_column: column of word lists.
        tags_column: column of tag lists, strings or a `ClassLabel`'s numbers; IOB1, IOB2, BIOES or BILOU.
        entities_column: column of entities.
        label_map: renames gold labels, see `LabelMap.read`; it must know every label that occurs.
        partial: marks every example as partially labelled (a row may say so itself: "partial").
        where: column -> values; only rows that have one of the values in each of these columns are read.
        limit: read no more than so many examples.

    Returns:
        The examples in order; equal entities of an example (after renaming) are one.

    Raises:
        ValueError: an unknown file type or split, no examples, columns that are not there, tags that do not parse,
            entities outside their example, or labels that the map misses.
        OSError: a file that cannot be read.
        ImportError: `datasets` is needed and not installed.
    """
    if limit is not None:
        check_count("limit", limit)
    names = None if label_map is None else LabelMap.read(label_map)
    columns = _Columns(text_column, tokens_column, tags_column, entities_column)
    chosen = ((place, row) for place, row in read_rows(source, split) if _is_chosen(row, where or {}))
    examples = [columns.read(place, row, partial) for place, row in islice(chosen, limit)]
    if not examples:
        raise ValueError(f"{named_source(source, split)} holds no example{f' where {dict(where)}' if where else ''}.")
    return examples if names is None else [_renamed(example, names) for example in examples]


def _is_chosen(row: Mapping[str, object], where: Mapping[str, Sequence[object]]) -> bool:
    return all(row.get(column) in values for column, values in where.items())


@dataclass(frozen=True)
class _Columns:
    """The columns to read; None where the usual names are tried."""

    text: str | None
    tokens: str | None
    tags: str | None
    entities: str | None

    def read(self, place: str, row: object, partial: bool) -> Example:
        """Makes an example of a row, or raises a ValueError that names its place."""
        if not isinstance(row, Mapping):
            raise ValueError(f"{place} must be an object, not a {type(row).__name__}.")
        try:
            content = self._content(row)
            entities = self._entities(row, content)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        document = next((row[name] for name in DOCUMENT_COLUMNS if row.get(name) is not None), None)
        return Example(
            content,
            tuple(dict.fromkeys(entities)),
            None if document is None else str(document),
            bool(row.get("partial", partial)),
        )

    def _content(self, row: Mapping[str, object]) -> str | list[str]:
        tokens = None if self.text else _column(row, self.tokens, TOKENS_COLUMNS)
        if tokens is not None:
            words = row[tokens]
            if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
                raise ValueError(
                    f"the column {tokens!r} must hold a list of words that are not empty, not {words!r:.80}."
                )
            return list(words)
        text = _column(row, self.text, TEXT_COLUMNS)
        if text is None:
            raise ValueError(
                f"there is no column {' or '.join(TOKENS_COLUMNS + TEXT_COLUMNS)}, only {sorted(row)}: name the "
                "column of the words or of the text."
            )
        if not isinstance(row[text], str):
            raise ValueError(f"the column {text!r} must hold a text, not {row[text]!r:.80}.")
        return str(row[text])

    def _entities(self, row: Mapping[str, object], content: str | list[str]) -> list[tuple[int, int, str]]:
        entities = None if self.tags else _column(row, self.entities, ENTITIES_COLUMNS)
        if entities is not None:
            listed = row[entities]
            if not isinstance(listed, Sequence) or isinstance(listed, str):
                raise ValueError(f"the column {entities!r} must hold a list of entities, not {listed!r:.80}.")
            return [_entity(value, len(content)) for value in listed]
        tags = _column(row, self.tags, TAGS_COLUMNS)
        if tags is None:
            raise ValueError(
                f"there is no column {' or '.join(ENTITIES_COLUMNS + TAGS_COLUMNS)}, only {sorted(row)}: name the "
                "column of the entities or of the tags."
            )
        given = row[tags]
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise ValueError(f"the column {tags!r} must hold a list of tags, not {given!r:.80}.")
        if isinstance(content, str) or len(given) != len(content):
            held = "a text" if isinstance(content, str) else f"{len(content)} words"
            raise ValueError(f"{len(given)} tags in {tags!r} belong to {held}: tags need a list of as many words.")
        return tags_to_entities(given)


def _column(row: Mapping[str, object], named: str | None, usual: Sequence[str]) -> str | None:
    if named is not None and named not in row:
        raise ValueError(f"there is no column {named!r}, only {sorted(row)}.")
    return named or next((name for name in usual if name in row), None)


def _entity(value: object, length: int) -> tuple[int, int, str]:
    fields: list[Any] = list(value) if isinstance(value, list | tuple) else []
    if isinstance(value, Mapping):
        label_key = next((key for key in LABEL_KEYS if key in value), "label")
        fields = [value.get("start"), value.get("end"), value.get(label_key)]
    if [type(field) for field in fields] != [int, int, str] or not fields[2]:
        raise ValueError(f"an entity must be [start, end, label], or an object with these keys, not {value!r:.80}.")
    start, end, label = fields
    if not 0 <= start < end <= length:
        raise ValueError(f"the entity [{start}, {end}, {label!r}] is empty or outside its example of length {length}.")
    return start, end, label


def _renamed(example: Example, label_map: LabelMap) -> Example:
    named = [(start, end, label_map.rename(label)) for start, end, label in example.entities]
    kept = dict.fromkeys((start, end, name) for start, end, name in named if name is not None)
    return replace(example, entities=tuple(kept))


def labels_of(examples: Iterable[Example]) -> list[str]:
    """Returns the labels that occur, sorted."""
    return sorted({label for example in examples for _, _, label in example.entities})


def recased(example: Example, case: Literal["lower", "upper"]) -> Example:
    """Returns the example in one case; characters whose other case is longer stay, so that offsets do."""

    def changed(text: str) -> str:
        other = text.lower() if case == "lower" else text.upper()
        if len(other) == len(text):
            return other
        return "".join(new if len(new := getattr(old, case)()) == 1 else old for old in text)

    content = example.content
    return replace(example, content=changed(content) if isinstance(content, str) else [changed(w) for w in content])


def word_starts(words: Sequence[str]) -> list[int]:
    """Returns the first character of each word in the words joined by single spaces."""
    starts, position = [], 0
    for word in words:
        starts.append(position)
        position += len(word) + 1
    return starts
