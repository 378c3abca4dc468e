"""Makes what the slots of templates stand for: people, clubs, companies, dates, numbers, and values from lists.

In: the kinds of a grammar and names by their type. Out: `Forms`, what a thing is called in different places, each form
with its label. Most names are invented or recombined.
Knows nothing of templates.
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .grammar import Kind

Forms = dict[str, tuple[str, str | None]]  # form -> text, label; each has the form "name"
Maker = Callable[[random.Random], Forms]

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
MONTHS += ("November", "December")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PLAIN_NAME = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*(?: [^\W\d_]+(?:[-'][^\W\d_]+)*)*$")
ODD_MARKS = re.compile(r" [-.:/!?,'\u2013] | 's|\(|\"")
PARTS = Path(__file__).with_name("name_parts.json")


class Makers:
    """A maker for each kind."""

    def __init__(self, kinds: Mapping[str, Kind], names: Mapping[str, Any]) -> None:
        """Reads the kinds; an unknown maker is a ValueError."""
        self.types: Mapping[str, list[str]] = names["types"]
        self.parts: dict[str, list[str]] = json.loads(PARTS.read_text(encoding="utf-8"))
        self.first, self.last = names["first_names"], [n for n in names["last_names"] if PLAIN_NAME.match(n)]
        self.people = [
            n.split(" ") for kind in self.parts["people"] for n in self.types.get(kind, ()) if _is_person(n)
        ]
        self.places = [n for kind in ("city", "town") for n in self.types.get(kind, ()) if _is_place(n)]
        self.kinds: dict[str, Maker] = {}
        for name, kind in kinds.items():
            if not hasattr(self, f"_{kind.maker}"):
                raise ValueError(f"the kind {name!r} names the maker {kind.maker!r}, which is not known.")
            self.kinds[name] = getattr(self, f"_{kind.maker}")(kind.arguments, kind.lines)

    def make(self, kind: str, generator: random.Random) -> Forms:
        """Something of a kind."""
        return self.kinds[kind](generator)

    # ---- makers: each takes a kind's arguments and lines

    def _list(self, label: str, lines: Sequence[str]) -> Maker:
        """Label; lines of values apart by semicolons."""
        values = [value.strip() for line in lines for value in line.split(";") if value.strip()]
        return lambda generator: {"name": (generator.choice(values), _label(label))}

    def _names(self, arguments: str, _: Sequence[str]) -> Maker:
        """Label < types of the dictionary."""
        label, _, kinds = arguments.partition("<")
        values = [n for kind in kinds.split(",") for n in self.types.get(kind.strip(), ()) if _is_title(n)]
        if not values:
            raise ValueError(f"the names hold nothing of {kinds!r}.")
        return lambda generator: {"name": (generator.choice(values), _label(label.strip()))}

    def _table(self, arguments: str, lines: Sequence[str]) -> Maker:
        """Columns as form=label; lines of values apart by semicolons, the first column being the name."""
        columns = [column.strip().partition("=") for column in arguments.split(";")]
        rows = [[value.strip() for value in line.split(";")] for line in lines]
        if ragged := [row for row in rows if len(row) != len(columns)]:
            raise ValueError(f"{ragged[0]} must have {len(columns)} values.")
        tables: list[Forms] = [{} for _ in rows]
        for row, forms in zip(rows, tables, strict=True):
            labels: dict[str, str | None] = {}  # a name that is also an adjective keeps its label
            for (form, _, label), value in zip(columns, row, strict=True):
                forms[form] = (value, labels.setdefault(value, _label(label)))
        return lambda generator: generator.choice(tables)

    def _number(self, arguments: str, _: Sequence[str]) -> Maker:
        """Label, lowest, highest, and a format."""
        label, low, high, *form = arguments.rsplit(" ", 3) if arguments.count(" ") > 2 else arguments.split(" ")
        spec = form[0] if form else "d"
        whole = "." not in spec
        low_value, high_value = float(low), float(high)

        def made(generator: random.Random) -> Forms:
            value = generator.uniform(low_value, high_value)
            if high_value > 50 * max(low_value, 1):  # any order of magnitude as likely as another
                value = max(low_value, 1) * (high_value / max(low_value, 1)) ** generator.random()
            return {"name": (format(round(value) if whole else value, spec), _label(label))}

        return made

    def _share(self, _: str, __: Sequence[str]) -> Maker:
        """Returns a share as in tables, such as ".512"."""
        return lambda generator: {"name": (f".{generator.randint(250, 750)}", None)}

    def _person(self, label: str, _: Sequence[str]) -> Maker:
        """Label."""
        return lambda generator: self._named_person(label, generator)

    def _named_person(self, label: str, generator: random.Random) -> Forms:
        first, last = self._first_and_last(generator)
        initial = f"{first[0]}."
        forms = {"name": f"{first} {last}", "last": last, "first": first, "initial": f"{initial} {last}"}
        forms["reversed"] = f"{last}, {first}"
        forms["initials"] = f"{initial}{generator.choice('ABCDEFGHJKLMPRSTW')}. {last}"
        return {form: (text, label) for form, text in forms.items()}

    def _first_and_last(self, generator: random.Random) -> tuple[str, str]:
        chance, words = generator.random(), generator.choice(self.people)
        if chance < 0.45:
            return " ".join(words[:-1]), words[-1]
        first = generator.choice(self.first)
        if chance < 0.6:
            first = f"{first}{generator.choice('- ')}{generator.choice(self.first)}"
        elif chance < 0.7:
            first = f"{first} {generator.choice('ABCDEFGHJKLMNPRSTW')}."
        last = words[-1] if generator.random() < 0.5 else generator.choice(self.last)
        chance = generator.random()
        if chance < 0.06:
            last = f"{generator.choice(self.parts['particles'])} {last}"
        elif chance < 0.09:
            last = generator.choice(self.parts["prefixes"]) + last
        return first, last

    def _place(self, label: str, _: Sequence[str]) -> Maker:
        """Label."""
        return lambda generator: {"name": (generator.choice(self.places), _label(label))}

    def _club(self, label: str, lines: Sequence[str]) -> Maker:
        """Label; lines of home towns apart by semicolons. Many clubs are called by the bare name of their town."""
        towns = [value.strip() for line in lines for value in line.split(";") if value.strip()]

        def made(generator: random.Random) -> Forms:
            town = generator.choice(towns if towns and generator.random() < 0.6 else self.places)
            chance = generator.random()
            name = town
            if chance > 0.75:
                name = f"{generator.choice(self.parts['before_clubs'])} {town}"
            elif chance > 0.5:
                name = f"{town} {generator.choice(self.parts['behind_clubs'])}"
            return {"name": (name, label), "short": (town, label), "town": (town, "city")}

        return made

    def _team(self, label: str, lines: Sequence[str]) -> Maker:
        """Label; a line of home cities and one of nicknames, apart by semicolons."""
        cities, nicknames = ([value.strip() for value in line.split(";")] for line in lines)

        def made(generator: random.Random) -> Forms:
            city = generator.choice(cities)
            nickname = generator.choice(nicknames)
            forms = {"name": f"{city} {nickname}", "short": city, "nick": nickname}
            return {form: (text, label) for form, text in forms.items()} | {"town": (city, "city")}

        return made

    def _company(self, label: str, _: Sequence[str]) -> Maker:
        """Label."""

        def made(generator: random.Random) -> Forms:
            stem, chance = self._stem(generator), generator.random()
            short = stem if chance < 0.4 else f"{stem} {generator.choice(self.parts['company_shapes'])}"
            ending = (
                f" {generator.choice(self.parts['company_endings'])}"
                if generator.random() < 0.7 or " " not in short
                else ""
            )
            code = "".join(word[0] for word in (short + ending).split(" ") if word[0].isalnum())
            code = code.upper() if len(code) > 2 else (short.replace(" ", "")[:3] + code[-1]).upper()
            forms = {"name": short + ending, "short": short, "code": code}
            return {form: (text, label) for form, text in forms.items()}

        return made

    def _stem(self, generator: random.Random) -> str:
        chance = generator.random()
        if chance < 0.3:
            return generator.choice(self.last)
        if chance < 0.42:
            return f"{generator.choice(self.last)} {generator.choice(['&', 'and'])} {generator.choice(self.last)}"
        if chance < 0.55:
            return generator.choice(self.places)
        if chance < 0.65:
            return "".join(generator.choice("ABCDEFGHIKLMNOPRSTUW") for _ in range(generator.choice([2, 3, 3, 4])))
        return generator.choice(self.parts["stems"]) + generator.choice(self.parts["tails"])

    def _front(self, label: str, lines: Sequence[str]) -> Maker:
        """Label; three lines of words, apart by semicolons, that make a name together; "code" is its initials."""
        columns = [[value.strip() for value in line.split(";")] for line in lines]

        def made(generator: random.Random) -> Forms:
            words = [generator.choice(column) for column in columns]
            name = " ".join(filter(None, words))
            code = "".join(word[0] for word in name.split(" ") if word[0].isupper())
            short = code if len(code) > 1 else name
            return {"name": (name, _label(label)), "code": (short, _label(label))}

        return made

    def _date(self, label: str, _: Sequence[str]) -> Maker:
        """Label."""

        def made(generator: random.Random) -> Forms:
            year, month, day = generator.randint(1985, 2024), generator.randrange(12), generator.randint(1, 28)
            long, short = MONTHS[month], MONTHS[month][:3]
            forms = {"name": f"{long} {day}", "short": f"{short} {day}", "dotted": f"{short}. {day}"}
            forms |= {"iso": f"{year}-{month + 1:02}-{day:02}", "day": generator.choice(DAYS), "month": long}
            forms |= {"full": f"{long} {day}, {year}", "british": f"{day} {long} {year}", "year": str(year)}
            return {form: (text, _label(label)) for form, text in forms.items()}

        return made


def _label(label: str) -> str | None:
    return None if label in ("", "-") else label


def _is_person(name: str) -> bool:
    words = name.split(" ")
    return 2 <= len(words) <= 3 and bool(PLAIN_NAME.match(name)) and all(word[0].isupper() for word in words)


def _is_place(name: str) -> bool:
    return bool(PLAIN_NAME.match(name)) and name.count(" ") < 2 and name[0].isupper() and " of " not in name


def _is_title(name: str) -> bool:
    return len(name) < 50 and not ODD_MARKS.search(name) and bool(name[-1].isalnum())
