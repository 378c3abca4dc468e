"""Evaluates a model: `python eval/run_eval.py --dataset PATH_OR_ID --model DIR`, or `--zero-shot --data DIR`.

In: labelled data and a model. Out: a printed table and, where asked for, JSON, pictures and model card metadata.
Candidates, scores and decoding are the pipeline's own. Thresholds and decoder come from the model's configuration,
from the command line, or from a dev set (--calibrate): never from the test set.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from other_scorers import nervaluate_scores, seqeval_scores
from reports import add_to_card, draw, table, zero_shot_table
from tqdm import tqdm
from transformers import pipeline
from zero_shot import SETS, SPLIT, label_phrases

from decodner_cli.pipeline_arguments import DTYPES, check_model_folder
from decodner_cli.training_arguments import add_context_arguments
from decodner_hf import DecodNERPipeline
from decodner_hf.core.configuration import FLAT_SELECTIONS, OVERLAPS
from decodner_hf.data.document_context import Context
from decodner_hf.data.example_rows import SPLIT_NAMES
from decodner_hf.data.examples import Example, labels_of, load_examples
from decodner_hf.data.label_maps import LabelMap
from decodner_hf.evaluation.calibration import FITTED, calibrate, reliability
from decodner_hf.evaluation.labelled_scoring import Decoder, score_examples
from decodner_hf.evaluation.span_metrics import confusion, span_scores

OK, FAILED = 0, 1
AGREEMENT = 1e-9  # of our figures with seqeval's
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
    if options.calibrate is not None and not options.force and _is_test_data(options):
        parser.error(f"--calibrate {options.calibrate}: that would tune on test data; name a dev split, or --force")
    return options


def _is_test_data(options: argparse.Namespace) -> bool:
    """Whether --calibrate names a test split, or what is evaluated: by any of its split's names, or as a file."""
    fitted, evaluated = Path(options.calibrate).resolve(), Path(options.dataset).resolve()
    names = SPLIT_NAMES.get(options.split, (options.split,))
    is_split = options.calibrate in names or (fitted.is_file() and fitted.stem in names and fitted.parent == evaluated)
    return "test" in fitted.stem.lower() or is_split or (fitted.is_file() and fitted == evaluated)


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
        dev_is_file = Path(options.calibrate).is_file()
        source, split = (options.calibrate, None) if dev_is_file else (options.dataset, options.calibrate)
        calibration = calibrate(pipe, _load(options, source, split, label_map), **_choices(options, labels))
        calibration.apply(pipe.model.config)
        if saved:
            save_calibration(pipe, saved, Path(options.model))
    name = Path(options.dataset).name if Path(options.dataset).exists() else options.dataset
    result = evaluate_set(pipe, examples, options, labels, name, options.split)
    result["calibration"] = None if calibration is None else calibration.to_dict()
    print(table(result))
    return result


def _publish(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Draws, and adds to the card, what was asked for."""
    written = [] if options.plots is None else draw(result, options.plots)
    if options.card is not None:
        written += add_to_card(result, options.card, options.dataset_id or result["dataset"])
    for path in written:
        print(f"wrote {path}")


def own_config(folder: Path) -> dict[str, Any]:
    """What a saved model's config.json holds; a ValueError for a plain decoder, which keeps no calibration."""
    saved: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    if saved.get("model_type") != "decodner":
        raise ValueError(f"{folder} is a plain decoder: save the model with the pipeline's save_pretrained first.")
    return saved


def save_calibration(pipe: DecodNERPipeline, saved: dict[str, Any], folder: Path) -> None:
    """Writes the calibrated values into a saved model's config.json and leaves everything else there as it is."""
    values = {name: getattr(pipe.model.config, name) for name in FITTED}
    text = json.dumps(saved | values, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _zero_shot(options: argparse.Namespace) -> dict[str, Any]:
    pipe = load_pipeline(options)
    results: dict[str, dict[str, Any]] = {}
    for name in SETS:
        phrases = label_phrases(name, labels_of(load_examples(options.data / name, SPLIT)))
        label_map = LabelMap.read(phrases)
        examples = load_examples(options.data / name, SPLIT, label_map=label_map, limit=options.limit)
        results[name] = evaluate_set(pipe, examples, options, label_map.labels, name, SPLIT)
        print(table(results[name]) + "\n", flush=True)
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
    """Scores, decodes and measures one set; the result is plain values."""
    if options.context != "sentence" and not any(example.document for example in examples):
        raise ValueError(f"{name} does not say which document a sentence belongs to: use --context sentence.")
    choices = _choices(options, labels)
    with tqdm(total=len(examples), unit="example", disable=None) as progress:
        scored = score_examples(pipe, examples, progress=progress.update, **choices)
    del choices["context"]
    decoder = Decoder.of(pipe, scored.labels, **choices)
    started = time.perf_counter()
    predicted = decoder.decode(scored)
    seconds = scored.seconds + time.perf_counter() - started
    scores = span_scores(
        scored.gold, predicted, scored.labels, units=scored.documents, resamples=options.resamples, seed=options.seed
    )
    seqeval = seqeval_scores(scored.gold, predicted)
    if seqeval is not None:
        seqeval["agrees"] = all(abs(scores[name] - value) < AGREEMENT for name, value in seqeval.items())
    return {
        "model": options.model,
        "dataset": name,
        "split": split,
        "context": options.context,
        "num_examples": len(examples),
        "settings": _describe(pipe, scored.labels, decoder, options),
        "scores": scores,
        "coverage": scored.coverage,
        "seqeval": seqeval,
        "nervaluate": nervaluate_scores(scored.gold, predicted, scored.labels),
        "reliability": reliability(scored, decoder),
        "confusion": {
            "labels": [*scored.labels, "(none)"],
            "counts": confusion(scored.gold, predicted, len(scored.labels)).tolist(),
        },
        "speed": {"seconds": seconds, "examples_per_second": len(examples) / seconds, "device": str(pipe.device)},
    }


def _describe(
    pipe: DecodNERPipeline, labels: Sequence[str], decoder: Decoder, options: argparse.Namespace
) -> dict[str, Any]:
    return {
        "labels": list(labels),
        "thresholds": dict(zip(labels, decoder.thresholds, strict=True)),
        "temperature": decoder.temperature,
        "overlap": decoder.overlap,
        "flat_selection": decoder.flat_selection,
        "max_span_words": options.max_span_words or pipe.model.config.max_span_words,
        "context_words": None if options.context == "sentence" else options.context_words,
        "dtype": str(pipe.model.dtype),
        "resamples": options.resamples,
        "seed": options.seed,
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
    }


if __name__ == "__main__":
    sys.exit(main())
