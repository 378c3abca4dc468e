"""Reads the rows of labelled data: files, folders with one file per split, saved datasets, the Hub.

In: a path or a Hub id, and a split. Out: dicts as the source has them, each with its place for messages; class numbers
are replaced by their names. JSON and CoNLL need the standard library alone, everything else `datasets`.
Knows nothing of what the columns mean.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Iterable[tuple[str, dict[str, object]]]  # (place for messages, row)
SPLIT_NAMES = dict.fromkeys(("dev", "valid", "validation"), ("dev", "valid", "validation"))
SUFFIXES = (".jsonl", ".json", ".conll", ".txt", ".parquet")
HUB_NAMES = {"conll2003": ("eriktks/conll2003", "refs/convert/parquet")}  # by revision: the id alone is a script


def read_rows(source: str | Path, split: str | None) -> Rows:
    """Returns the rows of a source in order, each with its place; see `load_examples` for source, split and errors."""
    path = Path(source)
    if path.is_file():
        if split is not None:
            raise ValueError(f"{path} is one file and has no split {split!r}: leave the split out.")
        return _file_rows(path)
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
            return _dataset_rows(_datasets().load_from_disk(str(path)), source, split)
        return _file_rows(_split_file(path, split))
    if path.suffix.lower() in SUFFIXES or path.is_absolute() or str(source).startswith("."):
        raise FileNotFoundError(f"there is no file or folder {path}.")
    name, revision = HUB_NAMES.get(str(source), (str(source), None))
    datasets = _datasets(f"there is no file or folder {source}; a set of that name on the Hub")
    return _dataset_rows(datasets.load_dataset(name, revision=revision), source, split)


def _split_file(folder: Path, split: str | None) -> Path:
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    found = [files[name] for name in (split, *SPLIT_NAMES.get(split or "", ())) if name in files]
    if not found:
        asked = "no split was named" if split is None else f"there is no split {split!r}"
        raise ValueError(f"{folder}: {asked}; the folder has {sorted(files) or 'no file of a known type'}.")
    return found[0]


def _file_rows(path: Path) -> Rows:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _json_lines(path)
    if suffix == ".json":
        return _json_rows(path)
    if suffix in (".conll", ".txt"):
        return _conll_rows(path)
    if suffix == ".parquet":
        from pyarrow import parquet  # comes with datasets, whose feature names the file's schema holds

        return _dataset_rows(_datasets().Dataset(parquet.read_table(path)), path, None)
    raise ValueError(f"cannot read {path.name!r}: its name must end in one of {', '.join(SUFFIXES)}.")


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _json_row(f"{path}, line {number}", line)


def _json_row(place: str, line: str) -> tuple[str, dict[str, object]]:
    try:
        return place, json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error}") from error


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    _, rows = _json_row(str(path), path.read_text("utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of examples; a file with one per line is called .jsonl.")
    for number, row in enumerate(rows, 1):
        yield f"{path}, example {number}", row


def _conll_rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Reads one word per line, its tag last; blank lines end a sentence, -DOCSTART- begins a document."""
    document, first = 0, 0
    words: list[str] = []
    tags: list[str] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate([*file, ""], 1):
            cells = line.split()
            starts_document = bool(cells) and cells[0] == "-DOCSTART-"
            if words and (not cells or starts_document):
                yield f"{path}, line {first}", {"tokens": words, "ner_tags": tags, "doc": document or None}
                words, tags = [], []
            if starts_document:
                document += 1
            elif cells:
                if len(cells) == 1:
                    raise ValueError(f"{path}, line {number}: a word and its tag are needed, not {line.strip()!r}.")
                first = first if words else number
                words.append(cells[0])
                tags.append(cells[-1])


def _dataset_rows(data: Any, source: object, split: str | None) -> Rows:
    if isinstance(data, Mapping):
        found = [data[name] for name in (split, *SPLIT_NAMES.get(split or "", ())) if name in data]
        if not found:
            asked = "no split was named" if split is None else f"there is no split {split!r}"
            raise ValueError(f"{source}: {asked}; it has {sorted(data)}.")
        data = found[0]
    elif split is not None:
        raise ValueError(f"{source} is one saved split: leave the split {split!r} out.")
    class_names = {
        name: feature.feature.names
        for name, feature in data.features.items()
        if hasattr(getattr(feature, "feature", None), "names")
    }
    return _named_rows(data, source, class_names)


def _named_rows(
    data: Iterable[dict[str, Any]], source: object, class_names: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, dict[str, object]]]:
    """Yields rows with names in place of class numbers."""
    for number, row in enumerate(data, 1):
        place = f"{source}, row {number}"
        named = {column: _class_names(names, row[column], place) for column, names in class_names.items()}
        yield place, row | named


def named_source(source: str | Path, split: str | None) -> str:
    """Describes the source and its split, for messages."""
    return str(source) if split is None else f"the split {split!r} of {source}"


def _class_names(names: Sequence[str], numbers: Sequence[int], place: str) -> list[str]:
    if not all(0 <= number < len(names) for number in numbers):
        raise ValueError(f"{place} has class numbers outside 0..{len(names) - 1}: this split is not labelled.")
    return [names[number] for number in numbers]


def _datasets(what: str = "this source") -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{what} needs datasets: pip install 'decodner-hf[eval]'.") from error
    return datasets
