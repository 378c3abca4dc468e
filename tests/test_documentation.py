"""README and documentation: every block runs or says why not and prints what is shown; every link leads somewhere.

Scores may differ in their third digit: another processor may round differently.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from refresh_pages import PAGES, blocks_of, refreshed, run_blocks

ROOT = Path(__file__).parents[1]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
REASONS = r"needs .+|a server|minutes of training|the tests themselves|part of a program"
SCORE = re.compile(r"\b\d\.\d+\b")
LAST_DIGIT = 1.01e-3
MOST_README_LINES = 150
pages = pytest.mark.parametrize("page", TEXTS)


def test_the_first_command_uses_the_included_model_and_shows_its_output():
    first = next(block for block in blocks_of(TEXTS["README.md"]) if block.kind == "bash")
    assert first.runs
    assert "decodner " in first.code
    assert "--model" not in first.code
    assert first.shown


def test_the_readme_is_short_and_says_on_its_first_screen_that_the_model_knows_english_only():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= MOST_README_LINES
    assert "English only" in " ".join(lines[:12])


@pages
def test_every_block_runs_or_says_why_not(page):
    for block in blocks_of(TEXTS[page]):
        assert block.reason is None or re.fullmatch(REASONS, block.reason), block.reason
        assert block.kind, "a block needs a language"
    assert TEXTS[page].count("<!-- not run:") == sum(b.reason is not None for b in blocks_of(TEXTS[page]))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("page", [page for page in TEXTS if any(block.runs for block in blocks_of(TEXTS[page]))])
def test_blocks_print_what_the_page_shows(page):
    if "to_displacy" in TEXTS[page] or "parquet" in TEXTS[page]:
        pytest.importorskip("pyarrow")
    for block, printed in run_blocks(blocks_of(TEXTS[page])):
        if block.shown is None:
            continue
        assert SCORE.sub("<score>", printed).strip() == SCORE.sub("<score>", block.shown).strip(), block.code
        scores = [[float(score) for score in SCORE.findall(text)] for text in (printed, block.shown)]
        assert scores[0] == pytest.approx(scores[1], abs=LAST_DIGIT), block.code


@pages
def test_no_output_shows_digits_that_depend_on_the_processor(page):
    shown = [block.shown for block in blocks_of(TEXTS[page]) if block.runs and block.shown is not None]
    assert [score for text in shown for score in SCORE.findall(text) if len(score) > len("0.1234")] == []


def test_refreshing_replaces_outputs_and_nothing_else():
    page = "a\n```python\nprint(1)\n```\n\n```text\n2\n3\n```\nb\n```text\nkept\n```\n```python\nprint(4)\n```\n"
    page += "<!-- not run: needs a GPU -->\n```python\nprint(5)\n```\n\n```text\nkept too\n```\n"
    page += '```json title="x"\n1\n```\n'
    page += "```bash\ncat x\n```\n\n```text\n```\n"
    expected = page.replace("2\n3\n", "1\n")
    assert refreshed(page) == expected.removesuffix("```\n") + "1\n```\n"


@pages
def test_links_lead_somewhere(page):
    """As files of the checkout: GitHub shows them so; mkdocs checks them as pages of the site."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", TEXTS[page])
    missing = [
        link for link in links if not link.startswith("http") and not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert missing == []


def test_pages_with_files_of_the_checkout_hold_them():
    import site_hooks

    for page, text in TEXTS.items():
        for path in re.findall(r"<!-- include: (\S+) -->", text):
            shown = site_hooks.on_page_markdown(text)
            assert "<!-- include" not in shown, page
            assert not shown.lstrip().startswith("---"), page
            assert "](docs/" not in shown
            assert re.search(r"^# .+", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)[0] in shown


@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="needs the extra docs")
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stdout + built.stderr
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "English only" in home
    assert "fonts.googleapis" not in home
