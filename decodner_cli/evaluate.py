"""The command `decodner evaluate`: how well a model finds the entities of labelled data.

In: parsed arguments. Out: a table or JSON on standard output, JSON in a file; an exit code.
Knows nothing of how anything is measured.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .loading import load_pipeline, quick_imports
from .messages import say
from .pipeline_arguments import add_pipeline_arguments, check_pipeline_arguments
from .training_arguments import add_context_arguments

if TYPE_CHECKING:
    from decodner_hf.core.pipeline import DecodNERPipeline
    from decodner_hf.data.document_context import Context
    from decodner_hf.data.examples import Example
    from decodner_hf.data.label_maps import LabelMap
    from decodner_hf.evaluation.calibration import Calibration

SUMMARY = "measure a model on labelled data"
DESCRIPTION = """\
Measures how well a model finds the entities of labelled data: precision, recall and F1 of exact spans (micro, macro,
per label) with a bootstrap interval, the gold spans that are no candidates, calibration and speed.
DATA is a file (.jsonl, .json, .conll, .txt in CoNLL form, .parquet), a folder with one such file per split, a folder
that `datasets` saved, or a Hub id. A row has `tokens` or `text`, and `entities` ([start, end, label]) or `ner_tags`.

Thresholds and temperature must never be chosen on the data that is evaluated: keep the model's own, or fit them to
other data with --calibrate-on.

examples:
  decodner evaluate labelled.jsonl
  decodner evaluate data/ --split test --model trained --calibrate-on dev --save
  decodner evaluate reviews.conll --label-map names.json --out result.json
"""
FORMATS = ("table", "json")
SELECTIONS = ("greedy", "exact")
COLUMNS = ("text", "tokens", "tags", "entities")
OK = 0


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    command.add_argument("data", metavar="DATA", help="labelled data: a file, a folder or a Hub id")
    data = command.add_argument_group("data")
    data.add_argument("--split", help="of a folder or a Hub dataset (default: test)")
    data.add_argument("--limit", type=int, metavar="N", help="only the first N examples")
    for column in COLUMNS:
        data.add_argument(f"--{column}-column", metavar="NAME", help=f"the column of the {column}")
    data.add_argument(
        "--label-map", type=Path, metavar="FILE",
        help="JSON: gold label -> name asked for, or null to leave it out; asks for these names",
    )  # fmt: skip
    data.add_argument(
        "--labels-from-data", action="store_true", help="ask for the labels that occur in the data, not the model's"
    )
    add_context_arguments(data)
    fitting = command.add_argument_group("calibration")
    fitting.add_argument(
        "--calibrate-on", metavar="DEV",
        help="fit temperature, thresholds and selection first: to this split of DATA, or to this file",
    )  # fmt: skip
    fitting.add_argument("--save", action="store_true", help="write what was fitted into the model's config.json")
    fitting.add_argument("--selection", choices=SELECTIONS, help="of entities that overlap (default: the model's)")
    output = command.add_argument_group("output")
    output.add_argument("--format", choices=FORMATS, default="table", help="of what is printed (default: table)")
    output.add_argument("--out", type=Path, metavar="FILE", help="write all results as JSON, too")
    output.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="of the bootstrap; 0: no interval (default: 1000)"
    )
    output.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    add_pipeline_arguments(command)


def check(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """Checks the arguments together."""
    check_pipeline_arguments(options, fail)
    named = [bool(options.labels), options.label_map is not None, options.labels_from_data]
    if sum(named) > 1:
        fail("argument --labels: only one of --labels, --labels-file, --label-map and --labels-from-data can be used")
    if options.save and options.calibrate_on is None:
        fail("argument --save: it writes what --calibrate-on fits")
    if options.save and (options.model is None or not Path(options.model).is_dir()):
        fail("argument --save: it needs --model to name a folder")
    if options.calibrate_on is not None:
        fitted = (options.threshold, options.selection, options.label_threshold or None, options.growth_threshold)
        if any(value is not None for value in fitted):
            fail("argument --calibrate-on: it fits thresholds and selection: leave out options that set them")
        if options.multi_label:
            fail("argument --calibrate-on: it is for one label a span: leave out --multi-label")
    if options.resamples < 0:
        fail(f"argument --resamples: {options.resamples} is less than 0")


def run(options: argparse.Namespace) -> int:
    """Measures, prints and writes; returns the exit code.

    Raises:
        ValueError: data or a model that cannot be used, calibration on test data.
        OSError: files that are missing or cannot be written.
    """
    with quick_imports():
        from decodner_hf.data.examples import labels_of
        from decodner_hf.data.label_maps import LabelMap
        from decodner_hf.evaluation.dev_sets import is_test_data
        from decodner_hf.evaluation.measuring import measure, report_table
    if options.split is None and not Path(options.data).is_file():
        options.split = "test"
    if options.calibrate_on is not None and is_test_data(options.calibrate_on, options.data, options.split):
        raise ValueError(
            f"--calibrate-on {options.calibrate_on}: that would tune on the data that is evaluated, or on a test set; "
            "name a dev split or another file."
        )
    if options.out is not None and not options.out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {options.out.parent} to write {options.out.name} to.")
    label_map = None if options.label_map is None else LabelMap.read(options.label_map)
    examples = _examples(options, options.data, options.split, label_map, options.limit)
    if label_map is not None:
        options.labels = label_map.labels
    elif options.labels_from_data:
        options.labels = dict.fromkeys(labels_of(examples))
    pipe, calibration = _ready_pipeline(options, label_map)
    name = Path(options.data).name if Path(options.data).exists() else options.data
    result = measure(
        pipe,
        examples,
        name=name,
        split=options.split,
        resamples=options.resamples,
        seed=options.seed,
        context=_context(options),
        choices=_choices(options),
    )
    result = {"model": str(options.model or pipe.model.config.name_or_path)} | result
    result["calibration"] = None if calibration is None else calibration.to_dict()
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text if options.format == "json" else report_table(result))
    return OK


def _ready_pipeline(
    options: argparse.Namespace, label_map: "LabelMap | None"
) -> "tuple[DecodNERPipeline, Calibration | None]":
    """Loads the pipeline and, where asked for, calibrates it."""
    from decodner_hf.evaluation.calibration import calibrate
    from decodner_hf.evaluation.dev_sets import own_config, place_of_dev_set, save_calibration

    if options.calibrate_on is None:
        return load_pipeline(options), None
    saved = own_config(Path(options.model)) if options.save else None
    source, split = place_of_dev_set(options.calibrate_on, options.data)
    dev = _examples(options, source, split, label_map, None)
    pipe = load_pipeline(options)
    calibration = calibrate(pipe, dev, context=_context(options))
    calibration.apply(pipe.model.config)
    change = f"F1 there {100 * calibration.f1_before:.2f} -> {100 * calibration.f1:.2f}"
    say(f"calibrated on {options.calibrate_on}, {calibration.num_examples} examples: {change}.")
    if calibration.grown_share is not None:
        part = f"{100 * calibration.grown_share:.1f}% of the candidates"
        say(f"growth threshold {calibration.growth_threshold:g}: it scores {part}.")
    if saved is not None:
        save_calibration(pipe.model.config, saved, Path(options.model))
        say(f"the calibration is in {Path(options.model) / 'config.json'}.")
    return pipe, calibration


def _examples(
    options: argparse.Namespace, source: str, split: str | None, label_map: "LabelMap | None", limit: int | None
) -> "list[Example]":
    from decodner_hf.data.examples import load_examples

    columns = {f"{name}_column": getattr(options, f"{name}_column") for name in COLUMNS}
    return load_examples(source, split, label_map=label_map, limit=limit, **columns)


def _context(options: argparse.Namespace) -> "Context | None":
    from decodner_hf.data.document_context import Context

    return Context.of(options.context, options.context_words)


def _choices(options: argparse.Namespace) -> dict[str, str]:
    """Returns what the pipeline's own arguments do not say."""
    return {} if options.selection is None else {"flat_selection": options.selection}
