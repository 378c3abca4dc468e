"""Puts files of the checkout into pages of the site: README, changelog, the included model's card.

In: a page with a line `<!-- include: PATH -->`. Out: the page with that file's text, without front matter, its
links made the site's.
Called by mkdocs (see mkdocs.yml).
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
INCLUDE = re.compile(r"^<!-- include: (\S+) -->$", flags=re.MULTILINE)
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", flags=re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)")
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "decodner_hf/default_model/README.md": "default_model.md",
}
NOT_SHOWN = ("decodner_hf/default_model/LICENSE", "LICENSE")  # links to them stay text


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns the page's text with the files that it names."""
    return INCLUDE.sub(lambda match: included(match[1]), markdown)


def included(path: str) -> str:
    """Returns a file of the checkout as text of the site."""
    text = FRONT_MATTER.sub("", (ROOT / path).read_text(encoding="utf-8"))
    for target in NOT_SHOWN:
        text = re.sub(rf"\[([^\]]*)\]\({re.escape(target)}\)", r"\1", text)
    return LINK.sub(lambda match: f"]({_on_the_site(match[1])}", text)


def _on_the_site(target: str) -> str:
    return PAGES.get(target, target.removeprefix("docs/"))
