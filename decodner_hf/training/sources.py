"""The labelled data that the options of `decodner train` name.

In: parsed options. Out: `TrainingPlan`: sources, labels and dev examples, overlaps dropped.
Knows nothing of tokenizers or models.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.decontamination import drop_overlaps
from ..data.document_context import Context
from ..data.examples import Example, labels_of, load_examples, recased
from ..data.label_maps import LabelMap
from .documents import TrainingSource
from .options import SOURCE_KEYS

NOTE_KEYS = ("description", "aliases", "parents")


@dataclass(frozen=True)
class TrainingPlan:
    """What a run trains on.

    Attributes:
        sources: without examples that overlap an evaluation set.
        labels: fixed labels with their descriptions; None for open types.
        dev: examples to report F1 on; may be empty.
        dev_labels: labels that they are asked for; None for the fixed ones.
        descriptions: of types, for open prompts.
        aliases: other names of types, for open prompts.
        parents: more general types of types, for open prompts.
        dropped: examples that overlapped an evaluation set, by source.
    """

    sources: list[TrainingSource]
    labels: dict[str, str | None] | None
    dev: list[Example]
    dev_labels: list[str] | None
    descriptions: Mapping[str, str]
    aliases: Mapping[str, Sequence[str]]
    parents: Mapping[str, Sequence[str]]
    dropped: dict[str, int]


def read_plan(options: argparse.Namespace, say: Callable[[str], None]) -> TrainingPlan:
    """Reads the data that the options name.

    Raises:
        ValueError: options that contradict each other, or data that cannot be read; says what is allowed.
        OSError: files that cannot be read.
    """
    _check(options)
    label_map = LabelMap.read(options.label_map) if options.label_map else None
    described = dict(label_map.labels) if label_map is not None else {}
    sources = _sources(options, label_map)
    held = [_load(*_named_split(name)) for name in options.keep_apart]
    dropped: dict[str, int] = {}
    kept = []
    for source in sources:
        examples, count = drop_overlaps(source.examples, held) if held else (list(source.examples), 0)
        if count:
            dropped[source.name] = dropped.get(source.name, 0) + count  # files of several folders have one name
            say(f"{source.name}: {count:,} examples dropped, which share ten words in a row with an evaluation set")
        kept.append(replace(source, examples=examples))
    dev_map = LabelMap.read(options.dev_label_map) if options.dev_label_map else label_map
    dev = _load(options.dev, options.dev_split, label_map=dev_map) if options.dev else []
    labels = None if options.open_types else _fixed_labels(options, described, kept)
    if dev:
        _check_dev(dev, labels)
    notes = _type_notes(options.type_notes)
    return TrainingPlan(
        sources=kept,
        labels=labels,
        dev=dev,
        dev_labels=labels_of(dev) if dev and labels is None else None,
        descriptions={name: note["description"] for name, note in notes.items() if note.get("description")},
        aliases={name: note["aliases"] for name, note in notes.items() if note.get("aliases")},
        parents={name: note["parents"] for name, note in notes.items() if note.get("parents")},
        dropped=dropped,
    )


def _check(options: argparse.Namespace) -> None:
    if (options.train is None) == (options.sources is None):
        raise ValueError("name the training data with either --train or --sources.")
    if options.open_types and options.labels:
        raise ValueError("--open-types asks for other labels in every prompt: leave --labels out.")
    if options.load_in_4bit and options.lora_rank is None:
        raise ValueError("a quantized decoder cannot be trained itself: --load-in-4bit needs --lora-rank.")
    if options.row_tokens < 128 or options.row_tokens % 128:
        raise ValueError(f"--row-tokens must be a multiple of 128, not {options.row_tokens}.")
    if options.keep_best and not options.dev:
        raise ValueError("--keep-best needs --dev.")
    if not 0.0 <= options.warmup <= 1.0:
        raise ValueError(f"--warmup is a part of the steps, from 0 to 1, not {options.warmup}.")
    if options.max_seconds is not None and options.max_seconds <= 0:
        raise ValueError(f"--max-seconds must be above 0, not {options.max_seconds}: leave it out for no limit.")
    for name in ("epochs", "rows_per_step", "log_steps", "max_steps", "lora_rank", "context_words"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}.")


def _check_dev(dev: Sequence[Example], labels: Mapping[str, str | None] | None) -> None:
    """Refuses, before any training, examples that could not be scored behind it."""
    named = labels_of(dev)
    partial = sum(example.partial for example in dev)
    if partial:
        raise ValueError(f"{partial} of {len(dev)} --dev examples are labelled only in part and cannot be scored.")
    if labels is None and not named:
        raise ValueError("no --dev example has an entity: with --open-types their labels are what is asked for.")
    strangers = sorted(set(named) - set(named if labels is None else labels))
    if strangers:
        raise ValueError(
            f"--dev has labels {strangers[:10]} that are not asked for; the labels are {list(labels or ())[:20]}: map "
            "or leave out labels with --dev-label-map."
        )


def _sources(options: argparse.Namespace, label_map: LabelMap | None) -> list[TrainingSource]:
    if options.train is not None:
        examples = _load(options.train, options.train_split, label_map=label_map, limit=options.limit)
        return [TrainingSource(Path(options.train).name, examples, context=context_of(vars(options)))]
    entries = _read_json(options.sources)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "path" in entry for entry in entries):
        raise ValueError(f"{options.sources} must be a JSON list of objects with a 'path' each.")
    sources = []
    for entry in entries:
        strangers = sorted(set(entry) - set(SOURCE_KEYS))
        if strangers:
            raise ValueError(f"{options.sources}: a source has no {strangers}, only {SOURCE_KEYS}.")
        own_map = LabelMap.read(entry["label_map"]) if entry.get("label_map") else label_map
        limits = [limit for limit in (entry.get("limit"), options.limit) if limit is not None]
        examples = _load(
            entry["path"],
            entry.get("split", "train"),
            label_map=own_map,
            partial=bool(entry.get("partial", False)),
            where=entry.get("where"),
            limit=min(limits, default=None),
        )
        case = entry.get("case")
        if case not in (None, "lower", "upper"):
            raise ValueError(f"{options.sources}: case must be 'lower' or 'upper', not {case!r}.")
        examples = examples if case is None else [recased(example, case) for example in examples]
        name = entry.get("name") or Path(entry["path"]).name
        labels, repeat = tuple(entry.get("labels", ())), float(entry.get("repeat", 1.0))
        context = context_of(vars(options) | entry)
        if "context_words" in entry and context is None:
            raise ValueError(f"{options.sources}: context_words of {name!r} needs a context: document or preceding.")
        sources.append(TrainingSource(name, examples, labels, repeat, entry.get("licence"), context))
    return sources


def context_of(options: Mapping[str, Any]) -> Context | None:
    """What of their document sentences are read with, as `context` and `context_words` say; None: nothing."""
    kind = options["context"]
    return None if kind == "sentence" else Context(kind, options["context_words"])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _load(path: str, split: str | None, **kwargs: Any) -> list[Example]:
    return load_examples(path, None if Path(path).is_file() else split, **kwargs)


def _named_split(name: str) -> tuple[str, str | None]:
    path, colon, split = name.rpartition(":")
    return (path, split) if colon and not Path(name).exists() else (name, "test")


def _fixed_labels(
    options: argparse.Namespace, described: Mapping[str, str | None], sources: Sequence[TrainingSource]
) -> dict[str, str | None]:
    """The labels in prompt order: as given, as the label map has them, or as they occur."""
    if options.labels:
        pairs = [item.partition("=") for item in options.labels]
        return {name: (text if equals else described.get(name)) for name, equals, text in pairs}
    if described:
        return dict(described)
    return dict.fromkeys(label for source in sources for label in source.labels)


def _type_notes(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """What the files say about each type; the first that says a thing counts."""
    merged: dict[str, dict[str, Any]] = {}
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
    return merged
