"""Draws F1 against span tokens a text token: exhaustive scoring, and growth at several thresholds.

In: a model with the continuation question and labelled data. Out: a figure, and on standard output a table and, last,
one JSON line. Points of other designs (a second copy of the text, causal) come from a file, if there is one:
[{"name": "second copy", "span_tokens": 1.0, "f1": 0.88}, ...].

    python scripts/benchmarks/plot_growth.py --model MODEL --data test.jsonl --device cuda --out docs/growth.svg
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from growth_rate import counted_passes, span_tokens, text_tokens
from transformers import pipeline

from decodner_hf import DecodNERPipeline
from decodner_hf.core.pipeline_io import Document
from decodner_hf.data.examples import Example, labels_of, load_examples
from decodner_hf.evaluation.labelled_scoring import evaluate

THRESHOLDS = (0.001, 0.01, 0.03, 0.1, 0.3, 0.5)


def points(pipe: DecodNERPipeline, examples: Sequence[Example], thresholds: Sequence[float]) -> list[dict[str, Any]]:
    """Evaluates the model exhaustively and at each growth threshold; a point has a name, span tokens and F1."""
    labels = list(pipe.model.config.labels) or labels_of(examples)
    settings = pipe.settings_for({"candidate_labels": labels})
    documents = [Document(example.content, pipe.labels_for(labels)) for example in examples]
    encoded = pipe.encoder.encode(documents, settings)
    num_tokens = text_tokens(pipe, [item.document.text for item in encoded])
    ways: list[tuple[str, dict[str, Any]]] = [("exhaustive", {"growth": False})]
    ways += [(f"grown at {value:g}", {"growth": True, "growth_threshold": value}) for value in thresholds]
    found = []
    for name, choices in ways:
        with counted_passes(pipe) as passes:
            figures = evaluate(pipe, examples, candidate_labels=labels, **choices)
        found.append({"name": name, "span_tokens": span_tokens(passes, encoded, num_tokens), "f1": figures["f1"]})
    return found


def draw(found: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the points, those of growth joined by a line."""
    figure, panel = plt.subplots(figsize=(5.5, 3.8))
    grown = [point for point in found if point["name"].startswith("grown")]
    panel.plot(
        [p["span_tokens"] for p in grown], [100 * p["f1"] for p in grown], "o-", color="tab:green", label="grown"
    )
    for point in grown:
        place = (point["span_tokens"], 100 * point["f1"])
        panel.annotate(point["name"].rsplit(" ", 1)[-1], place, (4, -9), textcoords="offset points", fontsize=7)
    for marker, point in zip("sD^vX", [*(p for p in found if p not in grown), *others], strict=False):
        panel.plot(point["span_tokens"], 100 * point["f1"], marker, label=point["name"])
    panel.set(xlabel="span tokens a text token", ylabel="F1")
    panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, evaluates, draws and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a model with the continuation question")
    parser.add_argument("--data", type=Path, required=True, help="labelled data")
    parser.add_argument("--limit", type=int, help="most examples")
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    parser.add_argument("--points", type=Path, help="JSON file of other points")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("growth.svg"), help="(default: growth.svg)")
    options = parser.parse_args(arguments)
    pipe = pipeline("decodner-ner", model=options.model, device=options.device)
    examples = load_examples(options.data)[: options.limit]
    found = points(pipe, examples, options.thresholds)
    others = json.loads(options.points.read_text(encoding="utf-8")) if options.points else []
    draw(found, others, options.out)
    for point in [*found, *others]:
        print(f"{point['name']:20s}{point['span_tokens']:8.2f} span tokens a text token{100 * point['f1']:8.2f} F1")
    print(json.dumps({"model": options.model, "data": str(options.data), "examples": len(examples), "points": found}))


if __name__ == "__main__":
    main()
