import json
import random
import re
from pathlib import Path

import pytest
import template_lines
from templates.grammar import Choice, Grammar, Reference, Slot, parse
from templates.makers import Makers

from decodner_hf.data.examples import load_examples

TEMPLATES = Path(template_lines.__file__).parent / "templates"
PEOPLE = ["Ana Berg", "Tom de Witt", "Li Wei", "Ivan Petrov", "Maria Costa"]
NAMES = {
    "types": {
        **dict.fromkeys(json.loads((TEMPLATES / "name_parts.json").read_text())["people"], PEOPLE),
        **{kind: ["Snorvik", "Quill Harbour", "Lucay", "Ostby"] for kind in ("city", "town", "stadium", "hospital")},
        **{kind: ["Night Ferry", "Blue Road", "Low Tide"] for kind in ("film", "comedy film", "drama film", "song")},
        **{
            kind: ["Tall Reed", "Tin Owls", "Grey Days"]
            for kind in ("single", "album", "live album", "band", "singer")
        },
        **{kind: ["Oslo Post", "Blix Air"] for kind in ("newspaper", "airline", "university", "US state")},
        **{kind: ["Ann Lee", "Bo Day"] for kind in ("rapper", "singer-songwriter", "film actor", "actress")},
    },
    "first_names": ["Ana", "Tom", "Ivan", "Maria"],
    "last_names": ["Berg", "Petrov", "Costa", "Wei"],
}
GRAMMAR = """
# a comment
text:
  3* <match> , it [was said|seems] .
  <pair:upper>

match:
  {club} beat {club2} // {club.short} ({club.town}) won {n}-{n}

pair:
  {person} [|and] {person2.last}

@club = club: football club
@person = person: person
@n = number: - 0 99
"""


def grammar(tmp_path, text):
    path = tmp_path / "templates.txt"
    path.write_text(text)
    return Grammar.read(path)


def writer(tmp_path, text, seed=0):
    rules = grammar(tmp_path, text)
    return template_lines.Writer(rules, Makers(rules.kinds, NAMES), random.Random(seed))


def test_alternatives_are_parsed_into_slots_rules_and_choices():
    nodes = parse("a {club2.short:upper} [x|<row> {n}|]<row:lower>")
    assert nodes[:3] == ("a ", Slot("club", "2", "short", "upper"), " ")
    assert nodes[3] == Choice((("x",), (Reference("row", None), " ", Slot("n", "", "name", None)), ()), (1.0,) * 3)
    assert nodes[4] == Reference("row", "lower")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text:\n  [a|b", "lacks a ']'"),
        ("text:\n  {club", "slot"),
        ("text:\n  <Row>", "rule <name>"),
        ("text:\n  <row>", "no rule 'row'"),
        ("text:\n  [a|{club}]", "no kind 'club'"),
        ("text:\n  a] b", "'] b' closes or divides nothing"),
        ("text:\n  a|b", "'|b' closes or divides nothing"),
        ("text:\n  [a}|b]", "'}|b]' closes or divides nothing"),
        ("  a\ntext:\n  b", "'a' belongs to no rule"),
        ("text\n  a", "must be a rule"),
        ("@club", "'@kind = maker: arguments'"),
    ],
)
def test_what_does_not_parse_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        grammar(tmp_path, text)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("@a = nothing: x", "maker 'nothing'"),
        ("@a = names: x < moon base", "hold nothing"),
        ("@a = table: name=x; code=y\n  only one", "must have 2 values"),
    ],
)
def test_kinds_that_cannot_be_made_are_named(tmp_path, kind, message):
    with pytest.raises(ValueError, match=message):
        writer(tmp_path, f"text:\n  {{a}}\n{kind}")


@pytest.mark.parametrize("kind", ["person: person", "number: - 0 99"])
def test_a_form_that_a_kind_lacks_is_named(tmp_path, kind):
    with pytest.raises(ValueError, match="no form 'code'"):
        writer(tmp_path, f"text:\n  {{a.code}}\n@a = {kind}").text("text")


def test_a_thing_is_called_the_same_throughout_a_text_and_two_things_differ(tmp_path):
    made = writer(tmp_path, GRAMMAR)
    numbers = set()
    for _ in range(50):
        lines = made.text("match")
        assert len(lines) == 2
        (first, two), (second, forms) = lines
        assert [first[s:e] for s, e, _ in two] == first.split(" beat ")
        assert first.split(" beat ")[0] != first.split(" beat ")[1]
        town = second[forms[1][0] : forms[1][1]]
        assert town in first
        assert [label for *_, label in forms] == ["football club", "city"]
        numbers.add(second.rsplit(" ", 1)[1])
    assert len(numbers) > 20
    assert any(left != right for left, right in (pair.split("-") for pair in numbers))


def test_case_reaches_what_a_rule_holds_and_labels_stay_on_their_names(tmp_path):
    made = writer(tmp_path, GRAMMAR)
    for _ in range(30):
        for text, mentions in made.text("text"):
            assert "  " not in text
            assert " ," not in text
            assert all(text[s:e].strip() == text[s:e] != "" for s, e, _ in mentions)
            if mentions and mentions[0][2] == "person":
                assert text.isupper()


@pytest.mark.parametrize("name", ["newswire", "queries", "science"])
def test_the_template_files_give_varied_lines_that_load(tmp_path, name):
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    command = ["--templates", str(TEMPLATES / f"{name}.txt"), "--names", str(tmp_path / "names.json")]
    command += ["--output", str(tmp_path / "lines.jsonl"), "--lines", "1500"]
    assert template_lines.main(command) == 0
    once = (tmp_path / "lines.jsonl").read_bytes()
    examples = load_examples(tmp_path / "lines.jsonl")
    assert len(examples) >= 1500
    assert len({example.text for example in examples}) > 0.97 * len(examples)  # words apart may read the same
    assert {type(example.content) for example in examples} == {str, list}
    assert sum(bool(example.entities) for example in examples) > 0.9 * len(examples)
    for example in examples:
        ends = [0, *(end for _, end, _ in sorted(example.entities))]
        assert all(start >= end for end, (start, _, _) in zip(ends, sorted(example.entities), strict=False))
        assert not set("{}<>[]@") & set(example.text)
    template_lines.main(command)
    assert (tmp_path / "lines.jsonl").read_bytes() == once


def test_every_kind_of_the_template_files_can_be_made():
    for path in TEMPLATES.glob("*.txt"):
        rules = Grammar.read(path)
        makers = Makers(rules.kinds, NAMES)
        for kind in rules.kinds:
            made = makers.make(kind, random.Random(0))
            assert all(text and text == text.strip() for text, _ in made.values()), kind
