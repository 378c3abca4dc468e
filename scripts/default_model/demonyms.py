"""Renames or drops the labels of nationalities in a labelled set, so that all sets agree on what "German" is.

In: the train split of a set, and label=new pairs for names that the taxonomy knows as nationalities or ethnic groups.
Out: a JSON Lines file with the same rows.

    python scripts/default_model/demonyms.py --set ner/docred --rename LOC=nationality --output docred.jsonl
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from silver.taxonomy import TAXONOMY

DEMONYMS = ("nationality", "ethnic group")


def renamed(row: Mapping[str, Any], demonyms: frozenset[str], names: Mapping[str, str]) -> dict[str, Any]:
    """Returns the row with new labels for demonyms; an empty new label drops the entity."""
    entities = []
    for start, end, label in row["entities"]:
        text = " ".join(row["tokens"][start:end]) if "tokens" in row else row["text"][start:end]
        new = names.get(label, label) if text.lower() in demonyms else label
        if new:
            entities.append([start, end, new])
    return {**row, "entities": entities}


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, metavar="FOLDER", help="its train.jsonl is read")
    parser.add_argument("--rename", nargs="+", required=True, metavar="LABEL=NEW", help="'LABEL=' drops the entity")
    parser.add_argument("--types", type=Path, default=TAXONOMY, metavar="FILE", help="the taxonomy")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    if bad := [pair for pair in options.rename if "=" not in pair]:
        parser.error(f"argument --rename: {bad} must be LABEL=NEW")
    names = dict(pair.split("=", 1) for pair in options.rename)
    known = json.loads(options.types.read_text(encoding="utf-8"))["names"]
    demonyms = frozenset(name.lower() for name, label in known.items() if label in DEMONYMS)
    changes: Counter[str] = Counter()
    source = options.set / "train.jsonl"
    with source.open(encoding="utf-8") as lines, options.output.open("w", encoding="utf-8") as out:
        for line in lines:
            before = json.loads(line)
            after = renamed(before, demonyms, names)
            changes.update(label for _, _, label in before["entities"])
            changes.subtract(label for _, _, label in after["entities"])
            out.write(json.dumps(after, ensure_ascii=False) + "\n")
    print(f"{options.output}: " + ", ".join(f"{label} {-count:+,}" for label, count in changes.items() if count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
