import pytest
from fake_pipes import entities_of

from decodner_hf.corpus.rendering import conll_block, json_lines, printable, table


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


def test_terminals_get_no_control_characters():
    assert printable("a\x1b[31m\n\ud800é") == "a\\x1b[31m\\n\\ud800é"
    assert table(entities_of("")) == ""
