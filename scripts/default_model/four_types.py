"""Makes a label map from fine types to person, organization, location and "other name", as news corpora have them.

In: what `type_notes.py` wrote, and the sets to map. Out: a label map; what is no name (dates, amounts) is dropped.

    python scripts/default_model/four_types.py --notes notes.json --sets silver.jsonl newswire.jsonl
        --output four.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KEPT = ("person", "organization", "location")
OTHER_NAMES = (
    *("nationality", "ethnic group", "religious group", "political organization", "event", "creative work", "product"),
    *("language", "award", "law", "fictional entity", "religion", "order of merit"),
)
NOT_NAMES = ("food", "programming language", "file format", "device", "material")


def mapped(label: str, notes: dict[str, Any]) -> str | None:
    """Returns the label's place among the four."""
    line = [label, *notes.get(label, {}).get("parents", ())]
    if any(name in NOT_NAMES for name in line):
        return None
    return next((name for name in line if name in KEPT), "other name" if line[-1] in OTHER_NAMES else None)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notes", type=Path, required=True, metavar="FILE")
    parser.add_argument("--sets", type=Path, nargs="+", required=True, metavar="FILE", help="JSON Lines")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    notes = json.loads(options.notes.read_text(encoding="utf-8"))
    labels: set[str] = set()
    for path in options.sets:
        with path.open(encoding="utf-8") as lines:
            labels |= {label for line in lines for _, _, label in json.loads(line)["entities"]}
    found = {label: mapped(label, notes) for label in sorted(labels)}
    options.output.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
