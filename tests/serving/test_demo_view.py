import contextlib
import html
import io
from xml.etree import ElementTree

import pytest
from tiny_pipelines import LABELS, TEXT, tiny_pipeline

from decodner_hf.serving import demo_view as view
from decodner_hf.serving.demo_samples import SAMPLES

MARKUP = "<script>alert(1)</script> & {{this}} ${1+1} <img src=x onerror=alert(2)>"


def form(text=TEXT, labels="Person=a named human being\nCompany", own=False, threshold=0.0, overlap="all"):
    return view.Form(text, labels, own, threshold, overlap)


def test_lines_become_labels_and_empty_ones_are_skipped():
    assert form(labels=" Person = a = b \n\n Company\nCity=").candidate_labels() == {
        "Person": "a = b",
        "Company": None,
        "City": None,
    }
    assert form(labels=" \n").candidate_labels() is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"labels": "a\na"}, "the label 'a' is named twice"),
        ({"labels": "=of what"}, "has no name"),
        ({"labels": "\n".join(map(str, range(101)))}, "101 labels: this page takes at most 100"),
        ({"text": "x" * 20_001}, "20,001 characters: this page takes at most 20,000"),
    ],
    ids=["twice", "no name", "many", "long"],
)
def test_what_the_page_does_not_take_is_said(fields, reason):
    with pytest.raises(ValueError, match=reason):
        form(**fields).arguments()


def test_arguments_leave_out_what_is_the_models_own():
    assert form(labels="", own=True, overlap="flat").arguments() == {"overlap": "flat"}
    assert form(labels="A", threshold=0.25).arguments() == {
        "candidate_labels": {"A": None},
        "threshold": 0.25,
        "overlap": "all",
    }


def entity(start, end, label="Person"):
    return {"entity_group": label, "score": 0.5, "start": start, "end": end, "word": MARKUP[start:end]}


def test_markup_and_templates_in_texts_labels_and_messages_are_text():
    shown = [
        view.highlighted(MARKUP, [entity(0, 8, MARKUP), entity(3, 30)]),
        view.bars({MARKUP: 0.5}),
        view.notice(MARKUP),
    ]
    for part in shown:
        assert not set("{}$") & set(part)
        root = ElementTree.fromstring(part)  # well-formed, and every tag is ours
        assert {element.tag for element in root.iter()} <= {"div", "mark", "b", "p", "span", "i"}
        assert MARKUP.split("&")[0].strip() in "".join(root.itertext()) or MARKUP in html.unescape(part)
    text = "".join(node for node in ElementTree.fromstring(view.highlighted(MARKUP, [])).itertext())
    assert text == MARKUP


def test_rows_and_code_show_what_the_pipeline_finds():
    pipe = tiny_pipeline()
    found = pipe(TEXT, candidate_labels=LABELS, threshold=0.0, overlap="all")
    rows = view.rows(found)
    assert [(row[0], row[2], row[3], row[4]) for row in rows] == [
        (e["entity_group"], e["start"], e["end"], e["word"]) for e in found
    ]
    code = view.python_code(form(), "folder")
    loaded = []
    printed = io.StringIO()
    stand_in = {"pipeline": lambda task, model: loaded.append((task, model)) or pipe}
    program = code.replace("from transformers import pipeline\n", "")
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "code on the page", "exec"), stand_in)
    assert loaded == [("decodner-ner", "folder")]
    assert printed.getvalue().splitlines() == [str(entity) for entity in found]
    assert 'pipeline("decodner-ner")' in view.python_code(form(), None)


def test_scores_of_a_span_are_those_of_every_label_and_of_none():
    pipe = tiny_pipeline()
    asked = form(threshold=0.9)
    start, end = view.find_words(asked, "Steve Jobs")
    assert TEXT[start:end] == "Steve Jobs"
    scores = view.label_scores(pipe, asked, start, end)
    (expected,) = pipe(
        {"text": TEXT, "spans": [(start, end)]}, candidate_labels=LABELS, threshold=0.0, overlap="all",
        return_all_scores=True,
    )  # fmt: skip
    assert scores.pop(view.NONE) == pytest.approx(1 - sum(expected["scores"].values()))
    assert scores == pytest.approx(expected["scores"])
    assert list(scores.values()) == sorted(scores.values(), reverse=True)


@pytest.mark.parametrize("words", ["", "Bill Gates"])
def test_words_that_are_not_in_the_text_are_said(words):
    with pytest.raises(ValueError, match="does not stand in the text"):
        view.find_words(form(), words)


def test_samples_are_of_several_domains_and_valid():
    assert len({sample.name for sample in SAMPLES}) == len(SAMPLES) >= 5
    for sample in SAMPLES:
        assert view.Form(sample.text, sample.labels, True, 0.0, "flat").candidate_labels()
