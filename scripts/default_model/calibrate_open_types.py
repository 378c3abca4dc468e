"""Fits one temperature and one threshold of an open-type model to dev sets with labels of their own, and saves them.

In: a model's folder and a JSON list of dev sets (the keys of `decodner train --sources`: path, split, label_map,
limit, name). Out: the same folder with temperature, threshold and way of selecting in its configuration, and with the
labels that it asks for when none are named and the positions beyond which it was not trained.

python scripts/default_model/calibrate_open_types.py --model model --sets dev_sets.json --labels person
    organization location
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from transformers import pipeline

import decodner_hf  # noqa: F401  registers the task
from decodner_hf.core.configuration import EXHAUSTIVE_SPAN_WORDS
from decodner_hf.data.examples import load_examples
from decodner_hf.data.label_maps import LabelMap
from decodner_hf.evaluation.calibration import fit_jointly
from decodner_hf.evaluation.labelled_scoring import Decoder, score_examples


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--sets", type=Path, required=True, metavar="FILE")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="asked for when no others are named")
    parser.add_argument(
        "--max-positions", type=int, metavar="N", help="longer documents are cut into windows of these"
    )
    options = parser.parse_args(argv)
    pipe = pipeline("decodner-ner", model=options.model, dtype="float32")
    words = min(EXHAUSTIVE_SPAN_WORDS, pipe.model.config.max_span_words)
    scored = []
    for entry in json.loads(options.sets.read_text(encoding="utf-8")):
        names = LabelMap.read(entry["label_map"])
        examples = load_examples(entry["path"], entry.get("split", "dev"), label_map=names, limit=entry.get("limit"))
        labels = names.labels
        found = score_examples(pipe, examples, candidate_labels=labels, max_span_words=words, ask_growth=True)
        scored.append((found, Decoder.of(pipe, found.labels, candidate_labels=labels)))
        print(f"{entry.get('name', entry['path'])}: {len(examples):,} examples, {len(labels)} labels", flush=True)
    fitted = fit_jointly(scored)
    fitted.apply(pipe.model.config)
    if options.labels:
        pipe.model.config.entity_labels = options.labels
    if options.max_positions:
        pipe.model.config.text_config.max_position_embeddings = options.max_positions
    pipe.model.config.save_pretrained(options.model)
    print(json.dumps(fitted.to_dict()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
