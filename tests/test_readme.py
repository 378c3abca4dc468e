"""The README's commands and Python examples print what the README shows; scores may differ in their digits."""

import re
from pathlib import Path

import pytest
from refresh_readme import examples, outputs, refreshed

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = examples(README)


def masked(text):
    """Scores replaced: their last digits depend on the processor."""
    return re.sub(r"\d\.\d{3,}", "<score>", text).strip()


def test_the_first_command_uses_the_default_model_and_shows_its_output():
    first = EXAMPLES[0]
    assert first.kind == "bash"
    assert "decodner " in first.code
    assert "--model" not in first.code


def test_examples_print_what_the_readme_shows():
    assert [example.kind for example in EXAMPLES].count("python") >= 6
    assert len(re.findall(r"```text\n", README)) == len(EXAMPLES)
    for example, printed in zip(EXAMPLES, outputs(EXAMPLES), strict=True):
        assert masked(printed) == masked(example.shown), example.code


def test_refreshing_replaces_outputs_and_nothing_else():
    readme = "a\n```python\nprint(1)\n```\n\n```text\n2\n3\n```\nb\n```text\nkept\n```\n```python\nprint(4)\n```\n"
    assert refreshed(readme) == readme.replace("2\n3\n", "1\n")


@pytest.mark.parametrize("page", ["README.md", "docs/evaluation.md", "docs/performance.md", "docs/training.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    missing = [
        link for link in links if not link.startswith("http") and not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert missing == []
