"""The README's commands and Python examples print what the README shows; scores may differ in their third digit."""

import re
from pathlib import Path

import pytest
from refresh_readme import examples, outputs, refreshed

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = examples(README)

SCORE = re.compile(r"\b\d\.\d+\b")
LAST_DIGIT = 1.01e-3  # of a score with three digits: another processor may round differently


def test_the_first_command_uses_the_default_model_and_shows_its_output():
    first = EXAMPLES[0]
    assert first.kind == "bash"
    assert "decodner " in first.code
    assert "--model" not in first.code


def test_examples_print_what_the_readme_shows():
    assert [example.kind for example in EXAMPLES].count("python") >= 6
    assert len(re.findall(r"```text\n", README)) == len(EXAMPLES)
    for example, printed in zip(EXAMPLES, outputs(EXAMPLES), strict=True):
        assert SCORE.sub("<score>", printed).strip() == SCORE.sub("<score>", example.shown).strip(), example.code
        scores = [[float(score) for score in SCORE.findall(text)] for text in (printed, example.shown)]
        assert scores[0] == pytest.approx(scores[1], abs=LAST_DIGIT), example.code


def test_no_example_shows_digits_that_depend_on_the_processor():
    assert [
        score for example in EXAMPLES for score in SCORE.findall(example.shown) if len(score) > len("0.1234")
    ] == []


def test_refreshing_replaces_outputs_and_nothing_else():
    readme = "a\n```python\nprint(1)\n```\n\n```text\n2\n3\n```\nb\n```text\nkept\n```\n```python\nprint(4)\n```\n"
    assert refreshed(readme) == readme.replace("2\n3\n", "1\n")


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/demo.md",
        "docs/evaluation.md",
        "docs/performance.md",
        "docs/serving.md",
        "docs/training.md",
    ],
)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    missing = [
        link for link in links if not link.startswith("http") and not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert missing == []
