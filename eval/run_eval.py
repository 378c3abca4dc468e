"""Evaluates a model for the benchmarks: `run_eval.py --dataset PATH_OR_ID --model DIR`, or `--zero-shot --data DIR`.

In: labelled data and a model. Out: a printed table and, where asked for, JSON, pictures and model card metadata.
Measures by `decodner_hf.evaluation.measuring`, as `decodner evaluate` does. Thresholds and decoder come from the
model's configuration, from the command line, or from a dev set (--calibrate): never from the test set.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reports import add_to_card, draw, zero_shot_table
from transformers import pipeline
from zero_shot import SETS, SPLIT, label_phrases

from decodner_cli.pipeline_arguments import DTYPES, check_model_folder
from decodner_cli.training_arguments import add_context_arguments
from decodner_hf import DecodNERPipeline
from decodner_hf.core.configuration import FLAT_SELECTIONS, OVERLAPS
from decodner_hf.data.document_context import Context
from decodner_hf.data.examples import Example, labels_of, load_examples
from decodner_hf.data.label_maps import LabelMap
from decodner_hf.evaluation.calibration import calibrate
from decodner_hf.evaluation.dev_sets import is_test_data, own_config, place_of_dev_set, save_calibration
from decodner_hf.evaluation.measuring import measure, report_table

OK, FAILED = 0, 1
DESCRIPTION = """\
Evaluates named entity recognition: exact span precision, recall and F1 (micro, macro, per label) with a bootstrap
interval, coverage of the gold spans by the candidates, seqeval and nervaluate for comparison, and speed.

Thresholds, temperature and decoder must never be chosen on test data: keep the model's own, or fit them to a dev set
with --calibrate.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = parse_arguments(argv)
    try:
        results = _zero_shot(options) if options.zero_shot else _one_set(options)
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        _publish(results, options)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"run_eval: error: {error}", file=sys.stderr)
        return FAILED
    return OK


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("run_eval.py", description=DESCRIPTION, formatter_class=raw, allow_abbrev=False)
    data = parser.add_argument_group("data")
    what = data.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", help="a file, a folder with one file per split, a saved dataset, or a Hub id")
    what.add_argument("--zero-shot", action="store_true", help="the benchmark of seven sets; needs --data")
    data.add_argument(
        "--data", type=Path, metavar="DIR", help="with --zero-shot: the folder that holds the seven sets"
    )
    data.add_argument("--split", help="default: test; a file has none")
    data.add_argument("--limit", type=int, metavar="N", help="only the first N examples")
    for column in ("text", "tokens", "tags", "entities"):
        data.add_argument(
            f"--{column}-column", metavar="NAME", help=f"the column of the {column}, if it has no usual name"
        )
    data.add_argument(
        "--labels-from-map", metavar="FILE", help="JSON: gold label -> name asked for, or null to leave it out"
    )
    data.add_argument("--labels-from-data", action="store_true", help="ask for the data's labels, not the model's own")
    add_context_arguments(data)
    model = parser.add_argument_group("model")
    model.add_argument("--model", required=True, metavar="DIR_OR_ID")
    model.add_argument("--device", help="cpu, cuda, cuda:1 (default: an accelerator where there is one)")
    model.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: as in config.json)")
    model.add_argument("--token-budget", type=int, metavar="N", help="tokens per pass")
    _add_decoding(parser.add_argument_group("decoding (choose on dev sets only)"))
    output = parser.add_argument_group("output")
    output.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap; 0 for none")
    output.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    output.add_argument("--out", type=Path, metavar="FILE", help="results as JSON")
    output.add_argument("--plots", type=Path, metavar="DIR", help="confusion.png and reliability.png")
    output.add_argument("--card", type=Path, metavar="DIR", help="add the results to the model card in this folder")
    output.add_argument("--dataset-id", metavar="ID", help="the data's id on the Hub, for --card")
    return parser


def _add_decoding(group: Any) -> None:
    where = group.add_mutually_exclusive_group()
    where.add_argument("--threshold", type=float, metavar="P", help="one for all labels")
    where.add_argument(
        "--thresholds-from-config", action="store_true", help="the model's own, calibrated ones (the default)"
    )
    where.add_argument(
        "--calibrate", metavar="SPLIT", help="fit temperature, thresholds and selection to this split or file first"
    )
    group.add_argument("--force", action="store_true", help="let --calibrate use a split called test")
    group.add_argument(
        "--save-calibration", action="store_true", help="write what --calibrate found into the model's config.json"
    )
    group.add_argument("--overlap", choices=OVERLAPS, help="default: the model's")
    group.add_argument("--selection", choices=FLAT_SELECTIONS, help="for overlap flat; default: the model's")
    group.add_argument("--max-span-words", type=int, metavar="N", help="longest candidate; default: the model's")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line; ends the process with a message where options contradict each other."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.zero_shot:
        if options.data is None:
            parser.error("--zero-shot needs --data, the folder with the seven sets")
        missing = [name for name in SETS if not (options.data / name).is_dir()]
        if missing:
            parser.error(f"--data {options.data} must hold the folders of all sets; these are missing: {missing}")
        refused = ("split", "labels_from_map", "calibrate", "plots", "card")
        given = [f"--{name.replace('_', '-')}" for name in refused if getattr(options, name) is not None]
        if given:
            parser.error(f"--zero-shot has its own protocol: leave out {', '.join(given)}")
    elif options.split is None and not Path(options.dataset).is_file():
        options.split = "test"
    if options.calibrate is not None and options.selection is not None:
        parser.error("--calibrate chooses the selection: leave out --selection")
    if options.calibrate is None and (options.save_calibration or options.force):
        parser.error("--save-calibration and --force go with --calibrate")
    if options.save_calibration and not Path(options.model).is_dir():
        parser.error("--save-calibration needs --model to be a folder")
    tests = options.calibrate is not None and is_test_data(options.calibrate, options.dataset, options.split)
    if tests and not options.force:
        parser.error(f"--calibrate {options.calibrate}: that would tune on test data; name a dev split, or --force")
    return options


def load_pipeline(options: argparse.Namespace) -> DecodNERPipeline:
    """Loads the model that the options name; a ValueError where there is no such device, an OSError without it."""
    check_model_folder(options.model)
    if options.device is not None and torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: torch sees no CUDA GPU here; use --device cpu.")
    pipe: DecodNERPipeline = pipeline(
        "decodner-ner",
        model=options.model,
        device=options.device,
        dtype=options.dtype,
        token_budget=options.token_budget,
        pipeline_class=DecodNERPipeline,
    )
    return pipe


def _one_set(options: argparse.Namespace) -> dict[str, Any]:
    label_map = None if options.labels_from_map is None else LabelMap.read(options.labels_from_map)
    examples = _load(options, options.dataset, options.split, label_map, options.limit)
    pipe = load_pipeline(options)
    labels = label_map.labels if label_map is not None else None
    if options.labels_from_data:
        labels = labels or dict.fromkeys(labels_of(examples))
    calibration = None
    if options.calibrate is not None:
        saved = own_config(Path(options.model)) if options.save_calibration else {}
        source, split = place_of_dev_set(options.calibrate, options.dataset)
        calibration = calibrate(pipe, _load(options, source, split, label_map), **_choices(options, labels))
        calibration.apply(pipe.model.config)
        if saved:
            save_calibration(pipe.model.config, saved, Path(options.model))
    name = Path(options.dataset).name if Path(options.dataset).exists() else options.dataset
    result = evaluate_set(pipe, examples, options, labels, name, options.split)
    result["calibration"] = None if calibration is None else calibration.to_dict()
    print(report_table(result))
    return result


def _publish(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Draws, and adds to the card, what was asked for."""
    written = [] if options.plots is None else draw(result, options.plots)
    if options.card is not None:
        written += add_to_card(result, options.card, options.dataset_id or result["dataset"])
    for path in written:
        print(f"wrote {path}")


def _zero_shot(options: argparse.Namespace) -> dict[str, Any]:
    pipe = load_pipeline(options)
    results: dict[str, dict[str, Any]] = {}
    for name in SETS:
        phrases = label_phrases(name, labels_of(load_examples(options.data / name, SPLIT)))
        label_map = LabelMap.read(phrases)
        examples = load_examples(options.data / name, SPLIT, label_map=label_map, limit=options.limit)
        results[name] = evaluate_set(pipe, examples, options, label_map.labels, name, SPLIT)
        print(report_table(results[name]) + "\n", flush=True)
    average = float(np.mean([result["scores"]["f1"] for result in results.values()]))
    print(zero_shot_table(results, average))
    return {"average_f1": average, "sets": results}


def _load(
    options: argparse.Namespace, source: str, split: str | None, label_map: LabelMap | None, limit: int | None = None
) -> list[Example]:
    columns = {f"{name}_column": getattr(options, f"{name}_column") for name in ("text", "tokens", "tags", "entities")}
    return load_examples(source, split, label_map=label_map, limit=limit, **columns)


def _choices(options: argparse.Namespace, labels: dict[str, str | None] | None) -> dict[str, Any]:
    return {
        "candidate_labels": labels,
        "max_span_words": options.max_span_words,
        "threshold": options.threshold,
        "overlap": options.overlap,
        "flat_selection": options.selection,
        "context": Context.of(options.context, options.context_words),
    }


def evaluate_set(
    pipe: DecodNERPipeline,
    examples: Sequence[Example],
    options: argparse.Namespace,
    labels: dict[str, str | None] | None,
    name: str,
    split: str | None,
) -> dict[str, Any]:
    """Measures one set; the result is plain values."""
    choices = _choices(options, labels)
    context = choices.pop("context")
    result = measure(
        pipe,
        examples,
        name=name,
        split=split,
        context=context,
        resamples=options.resamples,
        seed=options.seed,
        choices=choices,
    )
    return {"model": options.model} | result


if __name__ == "__main__":
    sys.exit(main())
