"""Shows documents with their entities as one HTML page that needs no other file and no network.

In: names, texts and entities as the pipeline returns them. Out: the page, piece by piece. Everything that comes from
documents, labels and names is escaped; the page's policy allows its own script only and forbids every connection.
Knows nothing of files or models.
"""

import base64
import hashlib
import html
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..core.pipeline_io import EntityRow
from .records import Entities

STYLE = """
:root { color-scheme: light; }
body { font: 16px/2.2 system-ui, sans-serif; max-width: 60em; margin: 0 auto 4em; padding: 0 1em; color: #1f2328; }
#bar { position: sticky; top: 0; background: #fff; border-bottom: 1px solid #bbb; padding: 0.5em 0; font-size: 0.85em;
  line-height: 1.9; z-index: 1; }
#legend label { display: inline-block; margin-right: 0.9em; white-space: nowrap; }
#legend span { padding: 0.1em 0.4em; border-radius: 0.3em; }
#bar button, #bar input[type=search] { font: inherit; }
#bar .group { margin-right: 1.2em; white-space: nowrap; }
article { border-bottom: 1px solid #ddd; padding: 0.6em 0; content-visibility: auto; contain-intrinsic-size: auto 5em;
  scroll-margin-top: 9em; }
article.current > h2 { color: #0550ae; }
article.empty { display: none; }
h2 { font-size: 0.8em; line-height: 1.4; margin: 0.3em 0; overflow-wrap: anywhere; }
h2 a { color: inherit; text-decoration: none; }
.fields { color: #555; font-size: 0.8em; line-height: 1.4; overflow-wrap: anywhere; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
mark { color: #000; padding: 0.2em 0.3em; border-radius: 0.3em; }
mark b { font-size: 0.65em; margin-left: 0.4em; vertical-align: middle; }
mark.off { background: none !important; padding: 0; color: inherit; }
mark.off > b { display: none; }
"""

SCRIPT = """
"use strict";
const marks = [...document.querySelectorAll("mark")];
const articles = [...document.querySelectorAll("article")];
const legend = document.getElementById("legend"), least = document.getElementById("least");
const shown = document.getElementById("shown"), found = document.getElementById("found");
const only = document.getElementById("only"), place = document.getElementById("place");
const labels = new Map();
let current = -1;
for (const mark of marks) {
  const name = mark.dataset.label;
  if (!labels.has(name)) labels.set(name, { colour: mark.style.background, total: 0, box: null });
  if (mark.lastElementChild && mark.lastElementChild.tagName === "B") labels.get(name).total++;
}
for (const name of [...labels.keys()].sort()) {
  const entry = labels.get(name);
  const label = document.createElement("label"), box = document.createElement("input");
  const swatch = document.createElement("span");
  box.type = "checkbox";
  box.checked = true;
  box.addEventListener("change", filter);
  swatch.style.background = entry.colour;
  swatch.textContent = name;
  label.append(box, " ", swatch, " " + entry.total);
  legend.append(label);
  entry.box = box;
}
function filter() {
  const lowest = Number(least.value);
  shown.textContent = lowest.toFixed(2);
  let count = 0;
  for (const mark of marks) {
    const on = labels.get(mark.dataset.label).box.checked && Number(mark.dataset.score) >= lowest;
    mark.classList.toggle("off", !on);
    if (on && mark.lastElementChild && mark.lastElementChild.tagName === "B") count++;
  }
  for (const article of articles) {
    article.classList.toggle("empty", only.checked && !article.querySelector("mark:not(.off)"));
  }
  found.textContent = count + " entities in " + visible().length + " documents";
}
function visible() {
  return articles.filter((article) => !article.classList.contains("empty"));
}
function go(article) {
  if (!article) return;
  articles.forEach((other) => other.classList.toggle("current", other === article));
  current = articles.indexOf(article);
  article.scrollIntoView({ block: "start" });
  place.textContent = current + 1 + " of " + articles.length;
}
function step(by) {
  const rest = by > 0 ? articles.slice(current + 1) : articles.slice(0, Math.max(current, 0)).reverse();
  go(rest.find((article) => !article.classList.contains("empty")));
}
function search(text) {
  const order = [...articles.slice(current + 1), ...articles.slice(0, current + 1)];
  go(order.find((article) => article.dataset.name.toLowerCase().includes(text.toLowerCase())));
}
least.addEventListener("input", filter);
only.addEventListener("change", filter);
document.getElementById("all").addEventListener("click", () => choose(true));
document.getElementById("none").addEventListener("click", () => choose(false));
function choose(on) {
  for (const entry of labels.values()) entry.box.checked = on;
  filter();
}
document.getElementById("next").addEventListener("click", () => step(1));
document.getElementById("previous").addEventListener("click", () => step(-1));
document.getElementById("search").addEventListener("keydown", (event) => {
  if (event.key === "Enter") search(event.target.value);
});
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" && event.target.type === "search") return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "n") step(1);
  if (event.key === "p") step(-1);
});
document.getElementById("bar").hidden = false;
filter();
"""

SCRIPT_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{SCRIPT_HASH}'; base-uri 'none'"
HEAD = f"""<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width">
<title>Entities</title>
<style>{STYLE}</style>
</head>
<body>
<div id="bar" hidden>
<div id="legend"></div>
<span class="group"><button id="all">all labels</button> <button id="none">no label</button></span>
<span class="group"><label>score from <input id="least" type="range" min="0" max="1" step="0.01" value="0"></label>
<output id="shown"></output></span>
<span class="group"><label><input id="only" type="checkbox"> only documents with entities</label></span>
<span class="group"><button id="previous" title="key p">previous</button> <button id="next" title="key n">next</button>
<output id="place"></output></span>
<span class="group"><input id="search" type="search" placeholder="document id, Enter"></span>
<output id="found"></output>
</div>
"""
TAIL = f"<script>{SCRIPT}</script>\n</body>\n</html>\n"


@dataclass(frozen=True)
class ShownDocument:
    """A document with its entities.

    Attributes:
        name: says which it is: "news.jsonl, line 12".
        text: the document.
        entities: what was found in it.
        fields: what else is known of it, shown above the text; a field "id" stands before the name.
    """

    name: str
    text: str
    entities: Entities
    fields: Mapping[str, object] = field(default_factory=dict)


def html_page(documents: Iterable[ShownDocument]) -> Iterator[str]:
    """Yields the page, piece by piece.

    It has a legend that hides and shows labels, a lowest score, the documents' names as links to themselves, a search
    for them, and steps to the next and the previous document. Without scripts it is the documents with their marks.
    """
    yield HEAD
    for number, document in enumerate(documents, 1):
        yield _article(document, number)
    yield TAIL


def _article(document: ShownDocument, number: int) -> str:
    others = dict(document.fields)
    name = document.name
    if "id" in others:
        name = f"{_shown(others.pop('id'))} ({name})"
    shown = ", ".join(f"{html.escape(key)}: {html.escape(_shown(value))}" for key, value in others.items())
    above = f'<div class="fields">{shown}</div>\n' if shown else ""
    title = html.escape(name)
    return (
        f'<article id="d{number}" data-name="{title}">\n<h2><a href="#d{number}">{title}</a></h2>\n{above}'
        f"{html_block(document.text, document.entities)}</article>\n"
    )


def html_block(text: str, entities: Entities) -> str:
    """Returns one text's HTML: entities as coloured marks, inside one another where they nest.

    Of two that cross, the later one is interrupted where the earlier one ends. A mark's label stands at its end.
    """
    opening = sorted(entities, key=lambda entity: (-entity["start"], entity["end"]))  # the next to open is the last
    bounds = sorted({0, len(text), *(entity["start"] for entity in entities), *(entity["end"] for entity in entities)})
    parts: list[str] = []
    stack: list[EntityRow] = []
    for here, following in zip(bounds, [*bounds[1:], len(text)], strict=True):
        interrupted = []
        while any(entity["end"] == here for entity in stack):
            entity = stack.pop()
            if entity["end"] == here:
                parts.append(f"<b>{html.escape(str(entity['entity_group']))}</b>")
            else:
                interrupted.append(entity)
            parts.append("</mark>")
        while opening and opening[-1]["start"] == here:
            interrupted.insert(0, opening.pop())
        for entity in reversed(interrupted):
            parts.append(_mark(entity))
            stack.append(entity)
        parts.append(html.escape(text[here:following]))
    return f'<div class="text" dir="auto">{"".join(parts)}</div>\n'


def _mark(entity: EntityRow) -> str:
    label = str(entity["entity_group"])
    hue = zlib.crc32(label.encode("utf-8", "replace")) % 360  # one colour a label, everywhere
    name, score = html.escape(label), f"{entity['score']:.4f}"
    style = f"background: hsl({hue} 70% 82%)"
    return f'<mark style="{style}" data-label="{name}" data-score="{score}" title="{name} {score}">'


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
