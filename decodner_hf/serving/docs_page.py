"""Writes the page of the service: what it offers, and a form to try it.

In: the OpenAPI description. Out: one HTML page that loads nothing from elsewhere.
Knows nothing of HTTP libraries or the pipeline.
"""

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

EXAMPLE = {
    "documents": [
        "Apple was founded by Steve Jobs in Cupertino.",
        {
            "text": "Aspirin eased her headache.",
            "candidate_labels": {"drug": None, "symptom": "what one suffers from"},
        },
    ],
    "return_all_scores": False,
}
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline';
 script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'">
<title>decodner</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
textarea, input { font: 14px/1.4 monospace; width: 100%; box-sizing: border-box; }
pre { background: #f3f4f6; padding: 0.8em; overflow: auto; max-height: 30em; }
table { border-collapse: collapse; } td { padding: 0.1em 1em 0.1em 0; vertical-align: top; }
</style>
</head>
<body>
"""
SCRIPT = """<script>
document.getElementById("send").onclick = async () => {
  const shown = document.getElementById("answer"), key = document.getElementById("key").value;
  const headers = {"Content-Type": "application/json"};
  if (key) headers.Authorization = "Bearer " + key;
  shown.textContent = "...";
  try {
    const answer = await fetch("extract", {method: "POST", headers, body: document.getElementById("body").value});
    shown.textContent = answer.status + "\\n" + JSON.stringify(await answer.json(), null, 2);
  } catch (error) { shown.textContent = String(error); }
};
</script>
</body>
</html>
"""


def docs_page(described: Mapping[str, Any]) -> str:
    """Returns the page for a service that is described by `described`, an OpenAPI object."""
    return HEAD + "".join(_parts(described)) + SCRIPT


def _parts(described: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h1>{html.escape(described['info']['title'])}</h1>\n"
    yield f"<p>{html.escape(described['info']['description'])}</p>\n"
    yield '<p>For programs: <a href="openapi.json">openapi.json</a>.</p>\n<h2>Routes</h2>\n'
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            yield f"<h3>{method.upper()} {html.escape(path)}</h3>\n<p>{html.escape(route['description'])}</p>\n"
            yield "<table>\n"
            for status, response in route["responses"].items():
                yield f"<tr><td>{html.escape(status)}</td><td>{html.escape(response['description'])}</td></tr>\n"
            yield "</table>\n"
    yield "<h2>Try POST /extract</h2>\n"
    yield f'<textarea id="body" rows="12">{html.escape(json.dumps(EXAMPLE, indent=2))}</textarea>\n'
    yield '<p><input id="key" type="password" placeholder="API key, where the service asks for one"></p>\n'
    yield '<button id="send">Send</button>\n<pre id="answer"></pre>\n'
    yield "<h2>Objects</h2>\n"
    for name, schema in described["components"]["schemas"].items():
        yield f"<h3>{html.escape(name)}</h3>\n<pre>{html.escape(json.dumps(schema, indent=2))}</pre>\n"
