"""Runs all that the CoNLL-2003 tables need: fine-tuning, baselines and ablations, several at once on several GPUs.

In: a backbone, and the folder that holds the sets `conll2003` and `conllpp`. Out: `OUT/results.json`, and with --table
the tables in Markdown. Every task is one of the public commands; a second call skips what the first has finished.
Thresholds come from the valid split, each mode's from its own; the test splits choose nothing.
--start repeats the fine-tunings from another model, for rows of its own besides those of the backbone. It has learned
types by their names, so it is asked for person, organization, location and miscellaneous, not for PER, ORG, LOC, MISC.

python eval/conll2003/conll_results.py --backbone backbone --data ner --out conll_results --gpus 2 --jobs-per-gpu 3
python eval/conll2003/conll_results.py --out conll_results --table
"""

import argparse
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conll_tables import NOTE, ablations_table, baselines_table, decoders_table, seeds_table
from parallel_tasks import Runner, Settings, Task, left_to_do, read_results

OK, FAILED, UNFINISHED = 0, 1, 3
GROUPS = ("seeds", "starts", "baselines", "ablations")
MARKS = ("backbone", "data", "words", "model", "result")  # of the commands
MODES = ("preceding", "sentence")  # the longer one first
BASE = "sentence-0"  # what the ablations change
FORMS = ("second-copy", "causal")
RATES = ("3e-5", "1e-4", "3e-4", "1e-3")
TRAIN_SET = ("--train", "{data}/conll2003")
DEV_SET = ("--dev", "{data}/conll2003", "--dev-split", "valid")
TAGS = ("--labels", "PER", "ORG", "LOC", "MISC")
WORDS = ("--label-map", "{words}")  # from tag to word
WORDS_FILE = Path(__file__).parents[1] / "label_maps" / "conll2003.json"
RECIPE = (
    *("--row-tokens", "16384", "--workers", "4", "--evaluate-epochs", "0"),
    *("--save-dtype", "bfloat16", "--max-shard-size", "15MB"),
)
JOINED = ("--context", "document", "--context-words", "200")
BY_WORDS = "label-words"
CHANGES = {  # one at a time, to the sentence model of the first seed
    "joined-sentences": JOINED,
    "width-4": ("--max-span-words", "4"),
    "width-12": ("--max-span-words", "12"),
    BY_WORDS: (),  # WORDS for TAGS
    "answer-cue": ("--answer-cue", "\nType:"),
    "none-weight-0.5": ("--none-weight", "0.5"),
    "none-weight-2": ("--none-weight", "2"),
}
DECODERS = {  # whether calibrated, and the options
    "raw-greedy": (False, ("--threshold", "0.5", "--selection", "greedy")),
    "raw-exact": (False, ("--threshold", "0.5", "--selection", "exact")),
    "calibrated-greedy": (True, ("--selection", "greedy")),
    "calibrated-exact": (True, ("--selection", "exact")),
}
TRAIN = ("-m", "decodner_cli", "train", "--output", "{model}")
EVALUATE = ("eval/run_eval.py", "--model", "{model}", "--out", "{result}")
BASELINE = ("eval/conll2003/train_token_baselines.py", "--model", "{backbone}", "--out", "{result}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is left to do, or prints the tables; returns the exit code, 3 if something is still to be done."""
    options = parse_arguments(argv)
    results = read_results(options.out)
    if options.table and not results:
        print(f"conll_results: error: there are no results in {options.out}.", file=sys.stderr)
        return FAILED
    if options.table:
        print(tables(results))
        return OK
    try:
        tasks = left_to_do(conll_tasks(options), options.only, results, options.work)
    except ValueError as error:
        print(f"conll_results: error: {error}", file=sys.stderr)
        return FAILED
    folders = {"backbone": options.backbone, "data": options.data, "words": WORDS_FILE} | options.start
    places = {f"{{{name}}}": str(folder.resolve()) for name, folder in folders.items()}
    settings = Settings(
        options.out, options.work, places, options.gpus, options.jobs_per_gpu, options.max_seconds or float("inf")
    )
    if options.list:
        print("\n".join(f"{task.name}: {shlex.join(task.command)}" for task in tasks))
        return OK
    signal.signal(signal.SIGTERM, _stop)
    runner = Runner(settings, results)
    unfinished = runner.run(tasks)
    print(f"{len(tasks) - len(unfinished)} of {len(tasks)} tasks done", flush=True)
    if unfinished:
        print(f"left: {', '.join(task.name for task in unfinished)}; failed: {len(runner.failed)}")
    return FAILED if runner.failed else UNFINISHED if unfinished else OK


def _stop(*_: object) -> None:
    """Ends this process, and with it the tasks under way; `timeout` sends its signal twice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(UNFINISHED)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line; ends the process with a message where it makes no sense."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("conll_results.py", description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of results.json")
    parser.add_argument("--table", action="store_true", help="print the tables of the results so far, and end")
    parser.add_argument("--list", action="store_true", help="print the commands that are left, and end")
    what = parser.add_argument_group("what")
    what.add_argument("--backbone", type=Path, metavar="DIR", help="the pretrained decoder")
    what.add_argument("--data", type=Path, metavar="DIR", help="the folder that holds conll2003 and conllpp")
    what.add_argument(
        "--start", type=_named_folder, action="append", default=[], metavar="NAME=DIR",
        help="fine-tune this model too, in both modes and with all seeds; may be given several times",
    )  # fmt: skip
    what.add_argument("--only", default=",".join(GROUPS), help=f"of {', '.join(GROUPS)}, joined by commas")
    what.add_argument("--seeds", type=int, default=3, help="fine-tunings in each mode (default: 3)")
    recipe = parser.add_argument_group("recipe, the same for all")
    recipe.add_argument("--epochs", type=int, default=8, help="of the baselines too (default: 8)")
    recipe.add_argument("--learning-rate", default="3e-4", help="of the fine-tunings (default: 3e-4)")
    recipe.add_argument("--context-words", type=int, default=64, help="before a sentence (default: 64)")
    recipe.add_argument(
        "--extra", default="", metavar="OPTIONS",
        help="more options of decodner train, as one string; with --sources FILE these stand for the train split",
    )  # fmt: skip
    how = parser.add_argument_group("how")
    how.add_argument("--work", type=Path, metavar="DIR", help="models and logs (default: OUT.work)")
    how.add_argument("--gpus", type=int, default=1, help="0: the CPU (default: 1)")
    how.add_argument("--jobs-per-gpu", type=int, default=1, help="tasks at once on each (default: 1)")
    how.add_argument("--max-seconds", type=float, help="stop then; the same command does the rest")
    options = parser.parse_args(argv)
    options.work = (options.work or options.out.with_name(f"{options.out.name}.work")).resolve()
    options.only, options.start = options.only.split(","), dict(options.start)
    unknown = sorted(set(options.only) - set(GROUPS))
    if unknown:
        parser.error(f"--only takes {', '.join(GROUPS)}, joined by commas, not {', '.join(unknown)}")
    if options.seeds < 1 or options.jobs_per_gpu < 1 or options.gpus < 0:
        parser.error("--seeds and --jobs-per-gpu must be at least 1, and --gpus at least 0")
    named = {"--backbone": options.backbone, "--data": options.data}
    named |= {f"--start {name}=DIR": folder for name, folder in options.start.items()}
    for name, folder in {} if options.table else named.items():
        if folder is None or not folder.is_dir():
            parser.error(f"{name} must name a folder, not {folder}")
    return options


def _named_folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or not folder or name in MARKS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=DIR with a NAME of small letters, digits and hyphens other than {', '.join(MARKS)}"
        )
    return name, Path(folder)


def conll_tasks(options: argparse.Namespace) -> list[Task]:
    """All tasks, the most important first, and of those the longest."""
    runs = [Run(mode, seed) for seed in range(options.seeds) for mode in MODES]
    runs += [Run(mode, seed, start) for start in options.start for seed in range(options.seeds) for mode in MODES]
    return [
        *(task for run in runs for task in (_training(options, run), *_evaluations(options, run))),
        *(_baseline(options, form, rate) for form in FORMS for rate in RATES),
        *(task for name, change in CHANGES.items() for task in _ablation(options, name, change)),
        *(
            _evaluation(
                f"{BASE}.{name}.{split}",
                "ablations",
                f"{BASE}.calibrated" if calibrated else BASE,
                choices,
                split=split,
            )
            for name, (calibrated, choices) in DECODERS.items()
            for split in ("valid", "test")
        ),
    ]


@dataclass(frozen=True)
class Run:
    """One fine-tuning: how it reads, its seed, and what it starts from."""

    mode: str
    seed: int
    start: str = "backbone"

    @property
    def name(self) -> str:
        """Of the task and its model."""
        return f"{self.mode}-{self.seed}" if self.start == "backbone" else f"{self.start}-{self.mode}-{self.seed}"

    @property
    def group(self) -> str:
        """Of its tasks."""
        return "seeds" if self.start == "backbone" else "starts"

    @property
    def by_words(self) -> bool:
        """Whether its labels are words; those of the backbone, which has learned neither, are the set's own tags."""
        return self.start != "backbone"


def _context(options: argparse.Namespace, mode: str) -> tuple[str, ...]:
    """The options of training and of evaluation that say how sentences are read."""
    return () if mode == "sentence" else ("--context", mode, "--context-words", str(options.context_words))


def _asked(by_words: bool) -> tuple[str, ...]:
    """The option of evaluation that says how gold labels are called."""
    return ("--labels-from-map", "{words}") if by_words else ()


def _training(options: argparse.Namespace, run: Run) -> Task:
    command = _command(options, run, run.by_words, _context(options, run.mode))
    return Task(run.name, run.group, command, makes=run.name)


def _ablation(options: argparse.Namespace, name: str, change: Sequence[str]) -> list[Task]:
    read, by_words = change if "--context" in change else (), name == BY_WORDS
    return [
        Task(name, "ablations", _command(options, Run("sentence", 0), by_words, change), makes=name),
        _evaluation(f"{name}.test", "ablations", name, (*read, *_asked(by_words), "--calibrate", "valid")),
    ]


def _command(options: argparse.Namespace, run: Run, by_words: bool, change: Sequence[str]) -> tuple[str, ...]:
    extra = shlex.split(options.extra)
    data = () if "--sources" in extra else TRAIN_SET
    labels = WORDS if by_words else TAGS
    base = ("--epochs", str(options.epochs), "--learning-rate", options.learning_rate, "--seed", str(run.seed))
    return (*TRAIN, "--model", f"{{{run.start}}}", *data, *DEV_SET, *labels, *RECIPE, *base, *extra, *change)


def _evaluation(
    name: str,
    group: str,
    model: str,
    arguments: Sequence[str],
    *,
    dataset: str = "conll2003",
    split: str = "test",
    makes: str | None = None,
) -> Task:
    data = ("--dataset", f"{{data}}/{dataset}", "--split", split)
    return Task(name, group, (*EVALUATE, *data, *arguments), reads=model, makes=makes)


def _evaluations(options: argparse.Namespace, run: Run) -> list[Task]:
    """Calibrated on valid and measured on both tests in its own mode; the first seed in the other mode too."""
    name, other = run.name, MODES[1 - MODES.index(run.mode)]
    asked, calibrated = _asked(run.by_words), f"{name}.calibrated"
    context, fit = (*_context(options, run.mode), *asked), ("--calibrate", "valid")
    tasks = [
        _evaluation(f"{name}.test", run.group, name, (*context, *fit, "--save-calibration"), makes=calibrated),
        _evaluation(f"{name}.conllpp", run.group, calibrated, context, dataset="conllpp"),
    ]
    if run.seed == 0:
        reading = (*_context(options, other), *asked, *fit)
        tasks.append(_evaluation(f"{name}.test-by-{other}", run.group, name, reading))
    return tasks


def _baseline(options: argparse.Namespace, form: str, rate: str) -> Task:
    data = ("--data", "{data}/conll2003", "--splits", "train", "valid", "test", "--epochs", str(options.epochs))
    return Task(f"{form}-{rate}", "baselines", (*BASELINE, *data, "--forms", form, "--learning-rates", rate))


def tables(results: dict[str, object]) -> str:
    """All tables."""
    parts = {
        "Fine-tuned on CoNLL-2003, thresholds from valid": seeds_table(results, MODES),
        "Token classification from the same backbone, same data and epochs": baselines_table(results, FORMS),
        "Ablations (sentences alone, one seed)": ablations_table(results, list(CHANGES)),
        "Decoders (sentences alone, seed 0)": decoders_table(results, BASE, list(DECODERS)),
    }
    return "\n\n".join([*(f"### {title}\n\n{text}" for title, text in parts.items()), NOTE])


if __name__ == "__main__":
    sys.exit(main())
