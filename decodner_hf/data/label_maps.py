"""Maps the gold labels of a data set to the names asked for in the prompt.

In: a mapping or a JSON file. Out: `LabelMap`.
Knows nothing of examples or prompts.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeGuard


@dataclass(frozen=True)
class LabelMap:
    """The name in the prompt of each gold label.

    Attributes:
        names: gold label -> name asked for, or None where its entities are left out.
        descriptions: name asked for -> description, where it has one.
    """

    names: dict[str, str | None]
    descriptions: dict[str, str]

    @property
    def labels(self) -> dict[str, str | None]:
        """The names asked for, in the map's order, each with its description or None."""
        asked = dict.fromkeys(name for name in self.names.values() if name is not None)
        return {name: self.descriptions.get(name) for name in asked}

    @classmethod
    def read(cls, source: "LabelMapSource") -> "LabelMap":
        """Makes a map from a mapping, or from a JSON file that holds one.

        A gold label's value is the name asked for, null to leave its entities out, or
        `{"label": name, "description": text}`.

        Raises:
            ValueError: a file or a value of another form, or a name with two descriptions.
        """
        if isinstance(source, LabelMap):
            return source
        if not isinstance(source, Mapping):
            try:
                source = json.loads(Path(source).read_text("utf-8"))
            except json.JSONDecodeError as error:
                raise ValueError(f"the label map {source} is not JSON: {error}") from error
        if not isinstance(source, Mapping):
            raise ValueError(f"a label map must be an object of gold labels, not a {type(source).__name__}.")
        names: dict[str, str | None] = {}
        descriptions: dict[str, str] = {}
        for gold, value in source.items():
            entry = value if isinstance(value, Mapping) else {"label": value}
            name, description = entry.get("label"), entry.get("description")
            unnamed = isinstance(value, Mapping) and name is None
            if set(entry) - {"label", "description"} or unnamed or not _is_name(name) or not _is_name(description):
                raise ValueError(
                    f"the label map's entry for {gold!r} must be a name, null, or an object with 'label' and "
                    f"'description', not {value!r}."
                )
            names[gold] = name
            if (
                name is not None
                and description is not None
                and descriptions.setdefault(name, description) != description
            ):
                raise ValueError(f"the label map gives {name!r} two descriptions.")
        return cls(names, descriptions)

    def rename(self, gold: str) -> str | None:
        """Returns the name asked for in place of `gold`, None where it is left out.

        Raises:
            ValueError: a label that the map misses.
        """
        if gold not in self.names:
            raise ValueError(
                f"the label map misses {gold!r}; it has {sorted(self.names)}. Name it, or map it to null to leave its "
                "entities out."
            )
        return self.names[gold]


def _is_name(value: object) -> TypeGuard[str | None]:
    return value is None or (isinstance(value, str) and bool(value.strip()))


LabelMapSource: TypeAlias = LabelMap | Mapping[str, object] | str | Path
