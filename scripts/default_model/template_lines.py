"""Writes labelled lines from templates: forms of text that encyclopedias lack, such as results, datelines and queries.

In: a template file (see templates/grammar.py), and the names that `silver_mentions.py --names` writes. Out: a JSON
Lines file; lines of one text carry the same "doc". A part of the texts stand as words with every mark apart.

    python scripts/default_model/template_lines.py --templates
    scripts/default_model/templates/newswire.txt --names names.json --output lines.jsonl
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from spaced_words import Mentions, labelled_lines
from templates.grammar import Choice, Grammar, Node, Reference, Slot
from templates.makers import Forms, Makers

LINE_END = "//"
Piece = tuple[str, str | None]  # text, label
TRIES = 20
ANEW = ("number", "share")  # makers whose things have no identity
CLOSERS = (".", ",", ";", ")")  # no space stands before these


class Writer:
    """Writes texts by a grammar."""

    def __init__(self, grammar: Grammar, makers: Makers, generator: random.Random) -> None:
        """`makers` makes what the grammar's kinds stand for."""
        self.grammar, self.makers, self.generator = grammar, makers, generator
        self.cast: dict[tuple[str, str], Forms] = {}

    def text(self, rule: str) -> list[tuple[str, Mentions]]:
        """Returns the lines of one text."""
        self.cast = {}
        return [line for line in joined(list(self._expand(Reference(rule, None)))) if line[0]]

    def _expand(self, node: Node, case: str | None = None) -> Iterator[Piece]:
        if isinstance(node, str):
            yield changed(node, case), None
        elif isinstance(node, Slot):
            text, label = self._form(node)
            yield changed(text, node.case or case), label
        elif isinstance(node, Reference):
            yield from self._expand(self.grammar.rules[node.rule], node.case or case)
        else:
            for inner in self._chosen(node):
                yield from self._expand(inner, case)

    def _chosen(self, choice: Choice) -> tuple[Node, ...]:
        return self.generator.choices(choice.options, choice.weights)[0]

    def _form(self, slot: Slot) -> Piece:
        """Returns the thing's form; things of one kind have different names in a text, numbers are drawn each time."""
        forms = self._forms(slot)
        if slot.form not in forms:
            raise ValueError(f"{slot.kind!r} has no form {slot.form!r}, only {sorted(forms)}.")
        return forms[slot.form]

    def _forms(self, slot: Slot) -> Forms:
        key = (slot.kind, slot.number)
        if self.grammar.kinds[slot.kind].maker in ANEW:
            return self.makers.make(slot.kind, self.generator)
        if key not in self.cast:
            taken = {forms["name"][0] for (kind, _), forms in self.cast.items() if kind == slot.kind}
            for _ in range(TRIES):
                made = self.makers.make(slot.kind, self.generator)
                if made["name"][0] not in taken:
                    break
            self.cast[key] = made
        return self.cast[key]


def changed(text: str, case: str | None) -> str:
    """Returns the text in another case."""
    if case == "title":
        return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))
    return text if case is None else getattr(text, case)()


def joined(pieces: Sequence[Piece]) -> Iterator[tuple[str, Mentions]]:
    """Yields the lines that the pieces make, each with its mentions; spaces that meet are one."""
    text, mentions = "", []
    for piece, label in [*pieces, (LINE_END, None)]:
        if label:
            mentions.append((len(text), len(text) + len(piece), label))
            text += piece
            continue
        for number, part in enumerate(piece.split(LINE_END)):
            if number:
                yield text.rstrip(), mentions
                text, mentions = "", []
            text = _with(text, part)


def _with(text: str, part: str) -> str:
    """Joins a text and an unlabelled part."""
    words = " ".join(filter(None, part.split(" ")))
    closes = words[:1] in CLOSERS and not words[1:2].isdigit()
    text = text.rstrip() if closes else text
    before = " " if part.startswith(" ") and text and not text.endswith(" ") and not closes else ""
    after = " " if part.endswith(" ") and words else ""
    return text + before + words + after


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, required=True, metavar="FILE")
    parser.add_argument("--names", type=Path, required=True, metavar="FILE", help="names by their type")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--lines", type=int, default=20_000, help="to write, about")
    parser.add_argument("--apart", type=float, default=0.5, help="share of texts that stand as words")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    grammar, generator = Grammar.read(options.templates), random.Random(options.seed)
    makers = Makers(grammar.kinds, json.loads(options.names.read_text(encoding="utf-8")))
    writer, labels = Writer(grammar, makers, generator), Counter[str]()
    written, seen, name = 0, set[str](), options.templates.stem
    with options.output.open("w", encoding="utf-8") as out:
        for number in range(options.lines * TRIES):
            lines = [line for line in writer.text("text") if line[0] not in seen]
            apart = generator.random() < options.apart
            for line in labelled_lines(lines, apart=apart):
                out.write(json.dumps(line | {"doc": f"{name} {number}"}, ensure_ascii=False) + "\n")
            seen.update(line for line, _ in lines)
            labels.update(label for _, mentions in lines for _, _, label in mentions)
            written += len(lines)
            if written >= options.lines:
                break
    print(f"{written:,} lines; {', '.join(f'{label} {count:,}' for label, count in labels.most_common())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
