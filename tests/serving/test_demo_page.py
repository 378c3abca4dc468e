"""The demo page in a browser: type, click, see. Skips where no browser is installed."""

import shutil
import socket
import sys

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from demo_picture import FLAGS
from playwright.sync_api import sync_playwright
from served_process import ServedProcess
from tiny_pipelines import tiny_pipeline

from decodner_cli import main as cli

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MARKUP = "<img src=x onerror=alert(1)> ${alert(2)} {{alert(3)}} <b>Rome</b>"
CELL = '#table [data-testid="cell-{row}-{column}"]:visible'
LABEL = "<script>alert(4)</script>"

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    arguments = ["--model", str(folder), "--labels", "Person", "City", "--threshold", "0"]
    with ServedProcess(*arguments, command="demo") as served:
        yield served
        served.process.terminate()
        code, messages = served.wait()
    assert code == 0
    assert messages.splitlines()[1:] == ["decodner: stopped."], messages  # and no warnings


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(served, browser):
    page = browser.new_page()
    page.set_default_timeout(60_000)
    asked, dialogs = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(served.address)
    page.locator("#text textarea").wait_for()
    yield page
    page.close()
    assert dialogs == []
    elsewhere = [url for url in asked if not url.startswith((served.address, "data:", "blob:"))]
    assert elsewhere == []


def fill(page, text, labels):
    page.locator("#text textarea").fill(text)
    page.locator("#labels textarea").fill(labels)


def click(page, name):
    page.get_by_role("button", name=name, exact=True).click()


@needs_browser
def test_type_click_and_see_entities_scores_and_code(page):
    fill(page, "Anna Bauer lives in Kyoto.", "Person=a named human being\nTown")
    click(page, "Find entities")
    marks = page.locator("#found mark")
    marks.first.wait_for()
    assert {mark.split("\n")[-1] for mark in page.locator("#found mark > b").all_inner_texts()} <= {"Person", "Town"}
    assert page.locator("#found .document, #found .text").text_content().startswith("Anna")
    cell = page.locator(CELL.format(row=0, column=4))
    word = cell.inner_text().strip()
    assert word in "Anna Bauer lives in Kyoto."
    code = page.locator("#code .cm-content").inner_text()
    assert "'Anna Bauer lives in Kyoto.'" in code
    assert "'Person': 'a named human being'" in code

    cell.click()
    page.locator("#scores .bar").first.wait_for()
    assert page.locator("#words textarea, #words input").input_value() == word
    assert sorted(page.locator("#scores .bar span").all_inner_texts()) == ["Person", "Town", "no entity"]
    scores = [float(score) for score in page.locator("#scores .bar b").all_inner_texts()]
    assert sum(scores) == pytest.approx(1.0, abs=1e-3)

    page.locator("#words textarea, #words input").fill("not there")
    click(page, "Show scores")
    page.locator("#scores .notice").wait_for()
    assert "'not there' does not stand in the text" in page.locator("#scores").inner_text()


@needs_browser
def test_thresholds_and_mistakes(page):
    fill(page, "Anna Bauer lives in Kyoto.", "Person")
    page.locator("#own-threshold input").uncheck()
    page.locator("#threshold input[type=number]").fill("1")
    click(page, "Find entities")
    page.locator("#found .document, #found .text").wait_for()
    assert page.locator("#found mark").count() == 0
    fill(page, "Anna Bauer lives in Kyoto.", "Person\nPerson")
    click(page, "Find entities")
    page.locator("#found .notice").wait_for()
    assert page.locator("#found").inner_text().strip().endswith("the label 'Person' is named twice.")


@needs_browser
def test_markup_in_texts_and_labels_is_shown_as_text(page):
    fill(page, MARKUP, LABEL)
    click(page, "Find entities")
    page.locator("#found mark").first.wait_for()
    shown = page.locator("#found .document, #found .text").evaluate(
        "node => { for (const label of node.querySelectorAll('mark > b')) label.remove(); return node.textContent; }"
    )
    assert shown == MARKUP
    assert page.locator("#found img, #found script, #table img, #table script").count() == 0
    assert page.locator(CELL.format(row=0, column=0)).inner_text().strip() == LABEL
    page.locator("#words textarea, #words input").fill("<img src=x onerror=alert(1)>")
    click(page, "Show scores")
    page.locator("#scores .bar, #scores .notice").first.wait_for()
    assert page.locator("#scores img, #scores script").count() == 0
    fill(page, MARKUP, f"{LABEL}\n{LABEL}")
    click(page, "Find entities")
    page.locator("#found .notice").wait_for()
    assert LABEL in page.locator("#found .notice").inner_text()


@needs_browser
def test_a_sample_fills_the_page_and_is_answered(page):
    click(page, "Cooking")
    page.locator("#found mark").first.wait_for()
    assert "butter" in page.locator("#text textarea").input_value()
    assert "ingredient" in page.locator("#labels textarea").input_value()
    assert "butter" in page.locator("#found").inner_text()


def test_a_port_in_use_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert cli.main(["demo", "--port", port, "--model", "/no/such/folder"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"decodner: error: port {port} of 127.0.0.1 is in use")
    assert error.count("\n") == 1


def test_a_missing_extra_is_named(capsys, monkeypatch):
    for name in [name for name in sys.modules if name in ("gradio", "decodner_hf.serving.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err.endswith('the demo page needs Gradio: pip install "decodner-hf[demo]".\n')
