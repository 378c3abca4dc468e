"""Joins what is known of entity types into one file for `decodner train --type-notes`.

In: hand-written notes, the taxonomy of `silver_mentions.py`, and a set of definitions ("X is a historic estate").
Out: JSON, type -> description, other names and more general types; a definition's phrase belongs to the type that its
end names, so that "historic estate" may also be asked for as "estate".

python scripts/default_model/type_notes.py --types silver/taxonomy.json --notes types.json --definitions
    train.jsonl --output notes.json
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from silver.taxonomy import Taxonomy

from decodner_hf.data.examples import labels_of, load_examples


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", type=Path, required=True, metavar="FILE", help="the taxonomy")
    parser.add_argument("--notes", type=Path, required=True, metavar="FILE", help="what comes before the taxonomy")
    parser.add_argument("--definitions", type=Path, required=True, metavar="FILE", help="examples labelled by phrases")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    notes = json.loads(options.notes.read_text(encoding="utf-8"))
    taxonomy = Taxonomy.read(options.types)
    joined = join(notes, taxonomy, labels_of(load_examples(options.definitions)))
    options.output.write_text(json.dumps(joined, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    general = sum("parents" in note for note in joined.values())
    print(f"{len(joined):,} types, {general:,} of them with a more general one")
    return 0


def join(notes: dict[str, Any], taxonomy: Taxonomy, phrases: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the notes of all types; those given by hand count first."""
    joined: dict[str, dict[str, Any]] = {name: dict(note) for name, note in notes.items()}
    for name, ancestors in taxonomy.types.items():
        note = joined.setdefault(name, {})
        if ancestors:
            note.setdefault("parents", ancestors)
        if name in taxonomy.aliases:
            note["aliases"] = list(dict.fromkeys([*note.get("aliases", ()), *taxonomy.aliases[name]]))
    for phrase in phrases:
        found = taxonomy.resolve(phrase.split())
        if phrase not in joined and found is not None:
            joined[phrase] = {"parents": [found, *taxonomy.types[found]]}
    return {name: note for name, note in joined.items() if note}


if __name__ == "__main__":
    raise SystemExit(main())
