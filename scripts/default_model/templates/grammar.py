"""Parses the template language: rules, choices and slots.

A file holds rules ("name:" and below it, indented, one alternative a line, "3* ..." for one that is three times as
likely) and kinds ("@kind = maker: arguments", with indented lines of values where the maker takes some). In an
alternative, <rule> stands for a rule, [a|b|] for one of several, {kind.form} for a form of something of that kind,
{kind2} for a second one, and // for the end of a line; <rule:upper> and {kind:upper} change the case.
Knows nothing of what kinds are.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

SLOT = re.compile(r"(?P<kind>[a-z_]+)(?P<number>\d*)(?:\.(?P<form>[a-z]+))?(?::(?P<case>upper|lower|title))?$")
RULE = re.compile(r"(?P<name>[a-z_]+)(?::(?P<case>upper|lower|title))?$")
CLOSING = {"[": "]", "{": "}", "<": ">"}
STRAY = "]}>|"  # where they are not expected


@dataclass(frozen=True)
class Slot:
    """A form of something; the same kind and number is the same thing throughout a text."""

    kind: str
    number: str
    form: str
    case: str | None


@dataclass(frozen=True)
class Reference:
    """A rule's expansion."""

    rule: str
    case: str | None


@dataclass(frozen=True)
class Choice:
    """One of several sequences."""

    options: tuple["Sequence_", ...]
    weights: tuple[float, ...]


Node = str | Slot | Reference | Choice
Sequence_ = tuple[Node, ...]


@dataclass(frozen=True)
class Kind:
    """How things of a kind are made."""

    maker: str
    arguments: str
    lines: tuple[str, ...]


@dataclass
class Grammar:
    """What a template file says.

    Attributes:
        rules: name -> its alternatives.
        kinds: by name.
    """

    rules: dict[str, Choice] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Grammar":
        """Reads a file; a line that does not parse, or a name that is not defined, is a ValueError."""
        grammar, lines = cls(), path.read_text(encoding="utf-8").splitlines()
        blocks: list[tuple[str, list[str]]] = []
        for line in lines:
            if line.startswith("#") or not line.strip():
                continue
            if line[0] != " ":
                blocks.append((line.strip(), []))
            elif not blocks:
                raise ValueError(f"{line.strip()!r} belongs to no rule and no kind: {path} must begin with one.")
            else:
                blocks[-1][1].append(line.strip())
        for head, body in blocks:
            grammar._add(head, body)
        grammar._check(path)
        return grammar

    def _add(self, head: str, body: list[str]) -> None:
        if head.startswith("@"):
            name, equals, rest = head[1:].partition(" = ")
            maker, _, arguments = rest.partition(":")
            if not equals:
                raise ValueError(f"{head!r} must be '@kind = maker: arguments'.")
            self.kinds[name.strip()] = Kind(maker.strip(), arguments.strip(), tuple(body))
        elif head.endswith(":") and body:
            pairs = [re.fullmatch(r"(?:(\d+(?:\.\d+)?)\* )?(.*)", line) for line in body]
            found = [(float(pair[1] or 1), parse(pair[2])) for pair in pairs if pair]
            self.rules[head[:-1]] = Choice(tuple(nodes for _, nodes in found), tuple(weight for weight, _ in found))
        else:
            raise ValueError(f"{head!r} must be a rule ('name:') with alternatives below it, or a kind ('@kind = ').")

    def _check(self, path: Path) -> None:
        nodes: list[Node] = list(self.rules.values())
        while nodes:
            node = nodes.pop()
            if isinstance(node, Choice):
                nodes += [inner for option in node.options for inner in option]
            elif isinstance(node, Reference) and node.rule not in self.rules:
                raise ValueError(f"{path} has no rule {node.rule!r}.")
            elif isinstance(node, Slot) and node.kind not in self.kinds:
                raise ValueError(f"{path} has no kind {node.kind!r}.")


def parse(text: str) -> Sequence_:
    """Returns the nodes of an alternative."""
    return _sequence(text, 0, "")[0]


def _sequence(text: str, at: int, stops: str) -> tuple[Sequence_, int]:
    nodes: list[Node] = []
    plain = ""
    while at < len(text) and text[at] not in stops:
        if text[at] in STRAY:
            raise ValueError(f"{text[at:]!r} closes or divides nothing in {text!r}.")
        if text[at] not in CLOSING:
            plain, at = plain + text[at], at + 1
            continue
        if plain:
            nodes.append(plain)
        plain = ""
        node, at = _bracketed(text, at)
        nodes.append(node)
    return tuple([*nodes, plain] if plain else nodes), at


def _bracketed(text: str, at: int) -> tuple[Node, int]:
    closing = CLOSING[text[at]]
    if closing == "]":
        options, end = [], at
        while text[end] != "]":
            option, end = _sequence(text, end + 1, "|]")
            if end >= len(text):
                raise ValueError(f"{text!r} lacks a ']'.")
            options.append(option)
        return Choice(tuple(options), (1.0,) * len(options)), end + 1
    end = text.find(closing, at)
    inner = text[at + 1 : end]
    found = (SLOT if closing == "}" else RULE).match(inner)
    if end < 0 or found is None:
        raise ValueError(f"{text[at:]!r} does not begin with a slot {{kind.form}} or a rule <name>.")
    if closing == ">":
        return Reference(found["name"], found["case"]), end + 1
    return Slot(found["kind"], found["number"], found["form"] or "name", found["case"]), end + 1
