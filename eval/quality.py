"""The quality of an open-type model in three tables: unseen sets, sets whose train split it saw, robustness.

In: a model, and the folder of the sets. Out: JSON, rewritten after every measurement, and tables in Markdown.
The model is loaded once. Its own thresholds decide everywhere; nothing is fitted here. --dev measures the dev splits
instead, for choices to be made without looking at a test split.

python eval/quality.py --model MODEL --data ner --out quality.json --table
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from robustness import NAMES, variants
from run_eval import load_pipeline
from zero_shot import CROSSNER, SETS, label_phrases

from decodner_cli.pipeline_arguments import DTYPES
from decodner_hf import DecodNERPipeline
from decodner_hf.data.document_context import Context
from decodner_hf.data.examples import Example, labels_of, load_examples
from decodner_hf.data.label_maps import LabelMap
from decodner_hf.evaluation.labelled_scoring import Decoder, score_examples
from decodner_hf.evaluation.markdown import markdown_table
from decodner_hf.evaluation.span_metrics import span_scores

OK, FAILED = 0, 1
TABLES = ("unseen", "seen", "robustness")
MAPS = Path(__file__).parent / "label_maps"
FOUR_TYPE_SETS = ("conll2003", "wikigold")  # PER, ORG, LOC, MISC, in documents
SEEN = {"wnut17": "test", "bc5cdr": "test", "ncbi_disease": "test", "multiconer2": "dev", "stackoverflow": "test"}
RESAMPLES = 1000
PRECEDING_WORDS = 60
READ = {None: "sentences", "document": "documents", "preceding": "sentences after their context"}
AVERAGE = "average of the zero-shot sets"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, or prints the tables of an earlier measurement; returns the exit code."""
    options = _parse(argv)
    try:
        if options.model is not None:
            measure(options)
        if options.table:
            print(tables(json.loads(options.out.read_text("utf-8"))))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"quality: error: {error}", file=sys.stderr)
        return FAILED
    return OK


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("quality.py", description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the figures as JSON")
    parser.add_argument("--table", action="store_true", help="print the tables (without --model: of --out as it is)")
    parser.add_argument("--model", metavar="DIR_OR_ID")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder that holds the sets")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--dev", action="store_true", help="dev splits; sets without one are left out")
    parser.add_argument("--sample", type=int, metavar="N", help="only about N examples of each set, evenly spaced")
    parser.add_argument("--context-words", type=int, default=400, metavar="N", help="of a passage (default: 400)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: an accelerator where there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: as in config.json)")
    parser.add_argument("--token-budget", type=int, metavar="N", help="tokens per pass")
    options = parser.parse_args(argv)
    if options.model is None and not options.table:
        parser.error("name a --model to measure, or ask for the --table of an earlier measurement")
    if options.model is not None and (options.data is None or not options.data.is_dir()):
        parser.error(f"--data must name the folder that holds the sets, not {options.data}")
    if options.sample is not None and options.sample < 1:
        parser.error(f"--sample must be at least 1, not {options.sample}")
    return options


@dataclass
class Quality:
    """What is measured so far, kept on disk."""

    pipe: DecodNERPipeline
    options: argparse.Namespace
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        table: str,
        name: str,
        examples: Sequence[Example],
        labels: dict[str, str | None],
        *,
        context: Context | None = None,
        **more: Any,
    ) -> None:
        """Scores, decodes and counts one set, keeps its row, and shows its F1; `more` goes into the row."""
        started = time.perf_counter()
        scored = score_examples(self.pipe, examples, context=context, candidate_labels=labels)
        predicted = Decoder.of(self.pipe, scored.labels, candidate_labels=labels).decode(scored)
        scores = span_scores(scored.gold, predicted, scored.labels, units=scored.documents, resamples=RESAMPLES)
        seconds = time.perf_counter() - started
        row = {
            "table": table,
            "name": name,
            "read": READ[context and context.kind],
            **more,
            "labels": list(scored.labels),
            "examples": len(examples),
            "scores": scores,
            "coverage": scored.coverage,
            "seconds": seconds,
        }
        self.rows.append(row)
        self.write()
        asked = f"{len(labels)} labels" if len(labels) > 1 else "1 label"
        print(f"{name} ({row['read']}, {asked}): F1 {100 * scores['f1']:.2f}, {seconds:.1f} s", flush=True)

    def write(self) -> None:
        """Writes all rows, and what they were measured with."""
        config, options = self.pipe.model.config, self.options
        settings = {
            "model": options.model,
            "dev": options.dev,
            "sample": options.sample,
            "context_words": options.context_words,
            "threshold": config.threshold,
            "label_thresholds": config.label_thresholds,
            "temperature": config.temperature,
            "flat_selection": config.flat_selection,
            "max_span_words": config.max_span_words,
            "device": str(self.pipe.device),
            "dtype": str(self.pipe.model.dtype),
            "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"settings": settings, "rows": self.rows}, indent=1, ensure_ascii=False)
        options.out.write_text(text + "\n", encoding="utf-8")


def measure(options: argparse.Namespace) -> None:
    """Fills the tables asked for."""
    quality = Quality(load_pipeline(options), options)
    if "unseen" in options.only:
        _four_type_sets(quality)
        _zero_shot_sets(quality)
    if "seen" in options.only:
        for name, split in SEEN.items():
            split = "dev" if options.dev else split
            label_map = LabelMap.read(MAPS / f"{name}.json")
            quality.add("seen", f"{name} {split}", _load(options, name, split, label_map), label_map.labels)
    if "robustness" in options.only:
        _robustness(quality)


def _four_type_sets(quality: Quality) -> None:
    """PER, ORG and LOC alone by sentences and, where documents are known, in context; then with MISC."""
    options = quality.options
    bare, whole = (LabelMap.read(MAPS / f"conll2003{ending}.json") for ending in ("_without_misc", ""))
    for name in FOUR_TYPE_SETS[:1] if options.dev else FOUR_TYPE_SETS:
        split = "valid" if options.dev else "test"
        examples = _load(options, name, split, bare)
        quality.add("unseen", f"{name} {split}", examples, bare.labels)
        if any(example.document for example in examples):
            for context in (Context("document", options.context_words), Context("preceding", PRECEDING_WORDS)):
                quality.add("unseen", f"{name} {split}", examples, bare.labels, context=context)
        else:
            _say_no_documents(f"{name} {split}", "it is read by sentences alone")
        quality.add("unseen", f"{name} {split} with MISC", _load(options, name, split, whole), whole.labels)


def _zero_shot_sets(quality: Quality) -> None:
    """The published benchmark; of dev splits the CrossNER sets have one each."""
    options, split = quality.options, "dev" if quality.options.dev else "test"
    for name in CROSSNER if options.dev else SETS:
        label_map = LabelMap.read(label_phrases(name, labels_of(load_examples(options.data / name, split))))
        examples = _load(options, name, split, label_map)
        quality.add("unseen", f"{name} {split}", examples, label_map.labels, zero_shot=True)


def _robustness(quality: Quality) -> None:
    options, split = quality.options, "valid" if quality.options.dev else "test"
    examples = _load(options, "conll2003", split, MAPS / "conll2003_without_misc.json")
    quality.add("robustness", f"conll2003 {split}", examples, dict.fromkeys(NAMES), kind="base")
    for variant in variants(examples):
        quality.add("robustness", variant.name, variant.examples, variant.labels, kind=variant.kind, read=variant.read)
    if not any(example.document for example in examples):
        _say_no_documents(f"conll2003 {split}", "longer documents are left out")


def _say_no_documents(name: str, consequence: str) -> None:
    print(f"{name} does not say which document a sentence belongs to: {consequence}.", file=sys.stderr, flush=True)


def _load(options: argparse.Namespace, name: str, split: str, label_map: LabelMap | Path) -> list[Example]:
    examples = load_examples(options.data / name, split, label_map=label_map)
    return examples if options.sample is None else sampled(examples, options.sample)


def sampled(examples: Sequence[Example], number: int) -> list[Example]:
    """About `number` examples in order: whole documents, evenly spaced; examples without one are one each."""
    keys = [index if example.document is None else example.document for index, example in enumerate(examples)]
    documents = list(dict.fromkeys(keys))
    wanted = min(len(documents), max(1, round(number * len(documents) / len(examples))))
    chosen = {documents[index] for index in np.linspace(0, len(documents) - 1, wanted).round().astype(int).tolist()}
    return [example for example, key in zip(examples, keys, strict=True) if key in chosen]


# ------------------------------------------------------------------ tables


def tables(quality: dict[str, Any]) -> str:
    """The tables in Markdown; F1 and the like in percent."""
    rows, sample = quality["rows"], quality["settings"]["sample"]
    parts = [] if sample is None else [f"About {sample} examples of each set: a quick look, not a result."]
    for table, title in (("unseen", "Unseen sets"), ("seen", "Sets whose train split was seen")):
        chosen = [row for row in rows if row["table"] == table]
        if chosen:
            parts += [f"### {title}", _set_table(chosen)]
    chosen = [row for row in rows if row["table"] == "robustness"]
    return "\n\n".join([*parts, *(["### Robustness", _robustness_table(chosen)] if chosen else [])])


def _set_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        scores, coverage = row["scores"], row["coverage"]
        name = row["name"]
        if "miscellaneous" in row["labels"]:
            name += f" (MISC alone: {_percent(scores['per_label'].get('miscellaneous', {'f1': 0.0})['f1'])})"
        figures = [_percent(scores[key]) for key in ("precision", "recall", "f1")]
        interval = " to ".join(_percent(bound) for bound in scores["f1_interval"])
        covered = _percent(coverage["candidate"] / max(1, sum(coverage.values())))
        lines.append([name, row["read"], str(len(row["labels"])), *figures, interval, covered])
    zero_shot = [row["scores"]["f1"] for row in rows if row.get("zero_shot")]
    if zero_shot:
        lines.append(
            [f"**{AVERAGE}** ({len(zero_shot)})", "", "", "", "", f"**{_percent(np.mean(zero_shot))}**", "", ""]
        )
    return markdown_table(
        ("set", "read by", "labels", "P", "R", "F1", "95 % interval", "coverage"), lines, words=(0, 1)
    )


def _robustness_table(rows: Sequence[dict[str, Any]]) -> str:
    base = next(row["scores"]["f1"] for row in rows if row["kind"] == "base")
    lines = [
        [row["kind"], row["name"], _percent(row["scores"]["f1"]), f"{100 * (row['scores']['f1'] - base):+.1f}"]
        for row in rows
    ]
    return markdown_table(("change", "", "F1", "against base"), lines, words=(0, 1))


def _percent(value: float) -> str:
    return f"{100.0 * value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
