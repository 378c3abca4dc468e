from html.parser import HTMLParser
from itertools import pairwise

import pytest
from fake_pipes import entities_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from decodner_hf.corpus.rendering import conll_block, html_block, json_lines, printable, table


def test_conll_refuses_labels_that_break_a_line():
    with pytest.raises(ValueError, match="holds a tab"):
        conll_block("Rome", [{**entities_of("Rome")[0], "entity_group": "A\nB"}])


def test_conll_refuses_entities_that_overlap():
    with pytest.raises(ValueError, match="overlap"):
        conll_block(
            "New York City", [dict(entities_of("New York")[0]), {**entities_of("York")[0], "start": 4, "end": 8}]
        )


def test_documents_nested_too_deeply_to_write_are_named():
    with pytest.raises(ValueError, match="line 7 is nested too deeply"):
        list(json_lines([("line 7", {"n": nested(200_000)})], print))


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def test_conll_tags_words():
    assert conll_block("In Steve Jobs's\nRome.", entities_of("In Steve Jobs's\nRome.")[1:]).split("\n\n")[1] == (
        "In\tO\nSteve\tO\nJobs\tO\n's\tO\nRome\tB-Name\n.\tO"
    )
    entity = {"entity_group": "Name", "word": "Steve Jobs", "score": 0.5, "start": 3, "end": 13}
    assert "Steve\tB-Name\nJobs\tI-Name\n's\tO" in conll_block("In Steve Jobs's", [entity])
    assert conll_block("", []) == "-DOCSTART-\tO\n\n"


class Marks(HTMLParser):
    """Collects the text outside labels and, for each label, the text its marks cover."""

    def __init__(self):
        super().__init__()
        self.text, self.labels, self.open, self.in_label = "", [], [], False

    def handle_starttag(self, tag, attributes):
        if tag == "mark":
            self.open.append((dict(attributes)["title"], len(self.text)))
        self.in_label = tag == "b"

    def handle_endtag(self, tag):
        self.in_label = False
        if tag == "mark":
            title, start = self.open.pop()
            self.labels.append((title, start, len(self.text)))

    def handle_data(self, data):
        if not self.in_label:
            self.text += data


@settings(deadline=None, max_examples=150)
@example(text="a <b> &c", places=[(0, 6), (5, 8), (5, 6)])
@given(
    text=st.text(
        st.sampled_from('ab<&>"é日\n') | st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12
    ),
    places=st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12)), max_size=5),
)
def test_html_marks_exactly_the_entities_even_if_they_cross(text, places):
    places = {(start, min(end, len(text))) for start, end in places if start < min(end, len(text))}
    entities = [
        {"entity_group": f"<{number}>", "score": 0.5, "start": start, "end": end, "word": text[start:end]}
        for number, (start, end) in enumerate(sorted(places))
    ]
    parser = Marks()
    parser.feed(html_block(text, entities))
    parser.close()
    assert parser.text.removesuffix("\n") == text.removesuffix("\n") or parser.text == text + "\n"
    assert parser.open == []
    for entity in entities:
        pieces = sorted(place for title, *place in parser.labels if title.startswith(entity["entity_group"]))
        assert pieces[0][0] == entity["start"]
        assert pieces[-1][1] == entity["end"]
        assert all(one[1] == other[0] for one, other in pairwise(pieces))


def test_terminals_get_no_control_characters():
    assert printable("a\x1b[31m\n\ud800é") == "a\\x1b[31m\\n\\ud800é"
    assert table(entities_of("")) == ""
