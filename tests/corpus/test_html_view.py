"""The HTML page: its marks by a parser everywhere, its controls in a browser where there is one."""

import os
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from fake_pipes import entities_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from decodner_hf.corpus import ShownDocument, html_page
from decodner_hf.corpus.html_view import html_block

NASTY = '</script><script>document.title = "broken"</script><img src=x onerror=alert(1)>" onclick="\'&<!--'
BROWSER = os.environ.get("DECODNER_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


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


def entity(label, start, end, score, text):
    return {"entity_group": label, "score": score, "word": text[start:end], "start": start, "end": end}


def page(*documents):
    return "".join(html_page(documents))


class Elements(HTMLParser):
    """Collects the tags and the attributes of a page, and its text outside of scripts and styles."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text, self.raw = [], [], "", False

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        self.raw = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.raw = self.raw and tag not in ("script", "style")

    def handle_data(self, data):
        self.text += "" if self.raw else data


def test_markup_in_texts_labels_names_and_fields_is_text():
    document = ShownDocument(NASTY, NASTY, [entity(NASTY, 0, len(NASTY), 0.5, NASTY)], {"id": NASTY, NASTY: NASTY})
    parsed = Elements()
    parsed.feed(page(document))
    assert parsed.tags.count("script") == 1
    assert "img" not in parsed.tags
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.text.count(NASTY) == 6  # name and id in the title, a field's name and value, the text, its label
    assert ("mark", "data-label", NASTY) in parsed.attributes


def test_the_page_needs_nothing_else():
    parsed = Elements()
    parsed.feed(page(ShownDocument("a", "Rome", entities_of("Rome"))))
    outside = [a for a in parsed.attributes if a[1] in ("src", "href") and not a[2].startswith("#")]
    assert outside == []
    assert not {"link", "img", "iframe", "object"} & set(parsed.tags)


def test_documents_are_told_apart_by_id_name_and_fields():
    shown = page(
        ShownDocument("f.jsonl, line 1", "x", [], {"id": 7, "topic": "y"}), ShownDocument("f.jsonl, line 2", "x", [])
    )
    assert '<a href="#d1">7 (f.jsonl, line 1)</a>' in shown
    assert '<a href="#d2">f.jsonl, line 2</a>' in shown
    assert '<div class="fields">topic: y</div>' in shown


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no chromium on this machine (DECODNER_BROWSER names one)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield opened
        opened.close()


TEXT = "Ann Lee met Bob in Rome."
SHOWN = [
    ShownDocument("f, line 1", TEXT, [entity("person", 0, 7, 0.9, TEXT), entity("place", 19, 23, 0.4, TEXT)]),
    ShownDocument("f, line 2", "Nothing here.", []),
    ShownDocument("f, line 3", TEXT, [entity("person", 12, 15, 0.6, TEXT)]),
    ShownDocument(NASTY, NASTY, [entity(NASTY, 0, 9, 0.5, NASTY)]),
]


@pytest.fixture
def view(browser, tmp_path):
    (tmp_path / "page.html").write_text(page(*SHOWN), encoding="utf-8")
    tab = browser.new_page()
    tab.problems = []
    tab.on("console", lambda message: tab.problems.append(message.text))
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("request", lambda request: request.url.startswith("file:") or tab.problems.append(request.url))
    tab.goto((tmp_path / "page.html").as_uri())
    yield tab
    assert tab.problems == []
    tab.close()


def shown_marks(tab):
    return tab.eval_on_selector_all("mark:not(.off)", "marks => marks.map(m => [m.dataset.label, m.dataset.score])")


def test_nothing_in_a_document_runs(view):
    assert view.title() == "Entities"
    assert view.locator("#found").inner_text() == "4 entities in 4 documents"


def test_labels_and_scores_filter(view):
    legend = [label.strip() for label in view.locator("#legend label").all_inner_texts()]
    assert sorted(legend) == sorted([f"{NASTY} 1", "person 2", "place 1"])
    view.locator("#legend label", has_text="person 2").locator("input").uncheck()
    assert shown_marks(view) == [["place", "0.4000"], [NASTY, "0.5000"]]
    view.locator("#all").click()
    view.locator("#least").fill("0.55")
    assert shown_marks(view) == [["person", "0.9000"], ["person", "0.6000"]]
    view.locator("#only").check()
    assert view.locator("article:visible").count() == 2
    assert view.locator("#found").inner_text() == "2 entities in 2 documents"


def test_next_previous_and_search_move_among_the_shown_documents(view):
    view.locator("#next").click()
    assert view.locator("article.current").get_attribute("id") == "d1"
    view.locator("#only").check()
    view.keyboard.press("n")
    assert view.locator("article.current").get_attribute("id") == "d3"
    assert view.locator("#place").inner_text() == "3 of 4"
    view.locator("#previous").click()
    assert view.locator("article.current").get_attribute("id") == "d1"
    view.locator("#search").fill("LINE 3")
    view.keyboard.press("Enter")
    assert view.locator("article.current").get_attribute("id") == "d3"
