"""Reads the labelled data of a training run.

In: `TrainingOptions`. Out: `TrainingData`: sources, labels and dev examples, without training examples that overlap an
evaluation set. Knows nothing of tokenizers or models.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.decontamination import drop_overlaps
from ..data.document_context import Context
from ..data.examples import Example, labels_of, load_examples, recased
from ..data.label_maps import LabelMap, LabelMapSource
from .options import SOURCE_KEYS, TrainingOptions

NOTE_KEYS = ("description", "aliases", "parents")


@dataclass(frozen=True)
class TrainingSource:
    """Examples that are labelled by one scheme.

    Attributes:
        name: for reports and the model card.
        examples: what to train on.
        labels: the types that the scheme knows, which is what its examples may be asked for; those that occur if ().
        repeat: how often an epoch shows each example; 0.5 is a random half, drawn anew for every epoch.
        licence: of the data, for the model card.
        context: how much of its document an example is read with; each is read alone if None.
    """

    name: str
    examples: Sequence[Example]
    labels: tuple[str, ...] = ()
    repeat: float = 1.0
    licence: str | None = None
    context: Context | None = None

    def __post_init__(self) -> None:
        """Checks that there is something to train on."""
        if not self.examples:
            raise ValueError(f"the source {self.name!r} has no examples.")
        if not self.repeat > 0:
            raise ValueError(f"repeat of the source {self.name!r} must be greater than 0, not {self.repeat!r}.")
        if not self.labels:
            object.__setattr__(self, "labels", tuple(labels_of(self.examples)))
        if not self.labels:
            raise ValueError(f"no example of the source {self.name!r} has an entity, and no labels were named for it.")


@dataclass(frozen=True)
class TypeNotes:
    """What is known of types, for open prompts.

    Attributes:
        descriptions: type -> description.
        aliases: type -> other names for it.
        parents: type -> the more general types that it belongs to, the nearest first.
    """

    descriptions: Mapping[str, str]
    aliases: Mapping[str, Sequence[str]]
    parents: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls, paths: Sequence[str | Path]) -> "TypeNotes":
        """Merges JSON files, type -> {"description", "aliases", "parents"}; the first that says a thing wins.

        Raises:
            ValueError: a file of another form.
        """
        merged: dict[str, dict[str, object]] = {}
        for path in paths:
            notes = _read_json(path)
            if not isinstance(notes, dict) or not all(
                isinstance(note, dict) and set(note) <= set(NOTE_KEYS) for note in notes.values()
            ):
                raise ValueError(
                    f"{path} must be a JSON object: type -> "
                    '{"description": text, "aliases": [names], "parents": [types]}.'
                )
            for name, note in notes.items():
                merged[name] = note | merged.get(name, {})
        parts = ({name: note[key] for name, note in merged.items() if note.get(key)} for key in NOTE_KEYS)
        return cls(*parts)  # type: ignore[arg-type]  # as the files have them


@dataclass(frozen=True)
class TrainingData:
    """What a run trains and is measured on.

    Attributes:
        sources: without examples that overlap an evaluation set.
        labels: fixed labels with their descriptions; None for open types.
        dev: examples to report F1 on; may be empty.
        dev_name: where they come from; None without any.
        dev_labels: labels that they are asked for; None for the fixed ones.
        notes: of types, for open prompts.
        dropped: number of examples that overlapped an evaluation set, by source.
    """

    sources: list[TrainingSource]
    labels: dict[str, str | None] | None
    dev: list[Example]
    dev_name: str | None
    dev_labels: list[str] | None
    notes: TypeNotes
    dropped: dict[str, int]

    @property
    def open_types(self) -> list[str]:
        """The types of all sources, then the more general types that they belong to."""
        own = dict.fromkeys(label for source in self.sources for label in source.labels)
        return list(own | dict.fromkeys(parent for label in own for parent in self.notes.parents.get(label, ())))


def read_training_data(options: TrainingOptions, report: Callable[[str], None]) -> TrainingData:
    """Reads the data that the options name; `report` is told what was dropped.

    Raises:
        ValueError: data that cannot be read, or labels that do not fit together; says what is allowed.
        OSError: files that cannot be read.
    """
    label_map = None if options.label_map is None else LabelMap.read(options.label_map)
    described = {} if label_map is None else label_map.labels
    held_out = [_load(*_named_split(name)) for name in options.decontaminate]
    dropped: dict[str, int] = {}
    kept = []
    for source in _sources(options, label_map):
        examples, count = drop_overlaps(source.examples, held_out) if held_out else (list(source.examples), 0)
        if count:
            dropped[source.name] = dropped.get(source.name, 0) + count  # files of several folders have one name
            report(f"{source.name}: {count:,} examples dropped, which share ten words in a row with an evaluation set")
        kept.append(replace(source, examples=examples))
    dev, dev_name = _dev(options, label_map)
    labels = None if options.open_types else _fixed_labels(options, described, kept)
    if dev:
        _check_dev(dev, labels)
    return TrainingData(
        sources=kept,
        labels=labels,
        dev=dev,
        dev_name=dev_name,
        dev_labels=labels_of(dev) if dev and labels is None else None,
        notes=TypeNotes.read(options.type_notes),
        dropped=dropped,
    )


def _dev(options: TrainingOptions, label_map: LabelMap | None) -> tuple[list[Example], str | None]:
    if options.dev is None:
        return [], None
    if not isinstance(options.dev, str | Path):
        return list(options.dev), "dev"
    own_map = label_map if options.dev_label_map is None else options.dev_label_map
    return _load(options.dev, options.dev_split, label_map=own_map), Path(options.dev).name


def _check_dev(dev: Sequence[Example], labels: Mapping[str, str | None] | None) -> None:
    """Refuses, before any training, examples that could not be scored after it."""
    named = labels_of(dev)
    partial = sum(example.partial for example in dev)
    if partial:
        raise ValueError(f"{partial} of {len(dev)} dev examples are labelled only in part and cannot be scored.")
    if labels is None and not named:
        raise ValueError("no dev example has an entity: with open types, their labels are what is asked for.")
    unknown = sorted(set(named) - set(named if labels is None else labels))
    if unknown:
        raise ValueError(
            f"the dev examples have labels {unknown[:10]} that are not asked for; the labels are "
            f"{list(labels or ())[:20]}: map or leave out labels with a label map of theirs."
        )


def _sources(options: TrainingOptions, label_map: LabelMap | None) -> list[TrainingSource]:
    if options.train is not None:
        examples = _load(options.train, options.train_split, label_map=label_map, limit=options.limit)
        context = Context.of(options.context, options.context_words)
        return [TrainingSource(Path(options.train).name, examples, context=context)]
    assert options.sources is not None  # or `train` is, as the options have checked
    if not isinstance(options.sources, str | Path):
        return list(options.sources)
    entries = _read_json(options.sources)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "path" in entry for entry in entries):
        raise ValueError(f"{options.sources} must be a JSON list of objects with a 'path' each.")
    try:
        return [_listed_source(entry, options, label_map) for entry in entries]
    except ValueError as error:
        raise ValueError(f"{options.sources}: {error}") from error


def _listed_source(entry: Mapping[str, Any], options: TrainingOptions, label_map: LabelMap | None) -> TrainingSource:
    """Reads one entry of a file of sources; what it leaves out is as the options say."""
    unknown = sorted(set(entry) - set(SOURCE_KEYS))
    if unknown:
        raise ValueError(f"a source has no {unknown}, only {SOURCE_KEYS}.")
    path = str(entry["path"])
    name = str(entry.get("name") or Path(path).name)
    limits = [limit for limit in (entry.get("limit"), options.limit) if limit is not None]
    examples = _load(
        path,
        entry.get("split", "train"),
        label_map=LabelMap.read(entry["label_map"]) if entry.get("label_map") else label_map,
        partial=bool(entry.get("partial", False)),
        where=entry.get("where"),
        limit=min(limits, default=None),
    )
    case = entry.get("case")
    if case not in (None, "lower", "upper"):
        raise ValueError(f"case must be 'lower' or 'upper', not {case!r}.")
    context = Context.of(entry.get("context", options.context), entry.get("context_words", options.context_words))
    if "context_words" in entry and context is None:
        raise ValueError(f"context_words of {name!r} needs a context: document or preceding.")
    return TrainingSource(
        name,
        examples if case is None else [recased(example, case) for example in examples],
        tuple(entry.get("labels", ())),
        float(entry.get("repeat", 1.0)),
        entry.get("licence"),
        context,
    )


def _read_json(path: str | Path) -> object:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _load(
    path: str | Path,
    split: str | None,
    *,
    label_map: LabelMapSource | None = None,
    partial: bool = False,
    where: Mapping[str, Sequence[object]] | None = None,
    limit: int | None = None,
) -> list[Example]:
    split = None if Path(path).is_file() else split
    return load_examples(path, split, label_map=label_map, partial=partial, where=where, limit=limit)


def _named_split(name: str) -> tuple[str, str | None]:
    """Takes PATH:SPLIT apart; the split is "test" if none is named."""
    path, colon, split = name.rpartition(":")
    return (path, split) if colon and not Path(name).exists() else (name, "test")


def _fixed_labels(
    options: TrainingOptions, described: Mapping[str, str | None], sources: Sequence[TrainingSource]
) -> dict[str, str | None]:
    """Returns the labels in prompt order: as given, as the label map has them, or as they occur."""
    given = options.label_descriptions
    if given:
        return {name: described.get(name) if text is None else text for name, text in given.items()}
    return dict(described) or dict.fromkeys(label for source in sources for label in source.labels)
