"""The CoNLL-2003 tables in Markdown, from what `conll_results.py` has gathered.

In: the results by task. Out: text; what has no result yet is left out. F1 and the like are in percent; several seeds
are given by their mean and standard deviation.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from decodner_hf.evaluation.markdown import markdown_table

Results = Mapping[str, Any]

NOTE = "Seconds are those of the whole command, start and compilation included, while other tasks shared the GPU."


def spread(values: Sequence[float], factor: float = 100.0, digits: int = 1) -> str:
    """The mean, and the standard deviation where there are several values; "-" where there are none."""
    if not values:
        return "-"
    mean = f"{factor * statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {factor * statistics.stdev(values):.{digits}f}"


def seeds_table(results: Results, modes: Sequence[str]) -> str:
    """What was fine-tuned, and how sentences were read in training and evaluation, by the figures over the seeds."""
    rows = []
    for start, prefix in _starts(results, modes).items():
        for trained in modes:
            for read in modes:
                run, ending = f"{prefix}{trained}", "test" if read == trained else f"test-by-{read}"
                tests = [entry["result"] for name, entry in results.items() if _is_run(name, run, ending)]
                if not tests:
                    continue
                other = [entry for name, entry in results.items() if _is_run(name, run, "conllpp")]
                corrected = [entry["result"]["scores"]["f1"] for entry in other] if read == trained else []
                figures = [[test["scores"][key] for test in tests] for key in ("precision", "recall", "f1")]
                valid = [test["calibration"]["f1"] for test in tests]
                cells = [spread(values) for values in (valid, *figures, corrected)]
                rows.append([start, trained, read, *cells, _training_seconds(results, run), str(len(tests))])
    headers = ("valid F1", "test P", "test R", "test F1", "corrected test F1", "s", "seeds")
    return markdown_table(("start", "trained by", "read by", *headers), rows, words=(0, 1, 2))


def _starts(results: Results, modes: Sequence[str]) -> dict[str, str]:
    """Start -> how the names of its runs begin: the backbone, then the others in order of their first results."""
    runs = [name.partition(".")[0].rpartition("-")[0] for name in results]
    others = [run.removesuffix(f"-{mode}") for run in runs for mode in modes if run.endswith(f"-{mode}")]
    return {"backbone": ""} | {start: f"{start}-" for start in others}


def _is_run(name: str, mode: str, ending: str) -> bool:
    run, _, rest = name.partition(".")
    return run.rpartition("-")[0] == mode and rest == ending


def _training_seconds(results: Results, mode: str) -> str:
    return spread([entry["seconds"] for name, entry in results.items() if _is_run(name, mode, "")], 1.0, 0)


def baselines_table(results: Results, forms: Sequence[str]) -> str:
    """Each form at each learning rate, the best on valid in bold; then how far span scoring is ahead of it."""
    rows, ahead = [], []
    own = [entry["result"]["scores"]["f1"] for name, entry in results.items() if _is_run(name, "sentence", "test")]
    for form in forms:
        entries = [entry for entry in results.values() if form in entry["result"].get("results", {})]
        entries.sort(key=lambda entry: entry["result"]["results"][form]["best"]["learning_rate"])
        runs = [entry["result"]["results"][form]["best"] for entry in entries]
        best = max(runs, key=lambda run: run["dev"]["f1"], default=None)
        for run, entry in zip(runs, entries, strict=True):
            tests = [spread([run["test"][key]]) for key in ("precision", "recall", "f1")]
            cells = [f"{run['learning_rate']:g}", spread([run["dev"]["f1"]]), *tests, f"{entry['seconds']:.0f}"]
            rows.append([f"**{cell}**" if run is best else cell for cell in (form, *cells)])
        if best is not None and own:
            ahead.append(f"{spread([statistics.mean(own) - best['test']['f1']])} points over {form}")
    table = markdown_table(("form", "learning rate", "valid F1", "test P", "test R", "test F1", "s"), rows)
    return (
        table if not ahead else f"{table}\n\nSpan scoring of single sentences is ahead in test F1: {', '.join(ahead)}."
    )


def ablations_table(results: Results, changes: Sequence[str]) -> str:
    """One change at a time to the sentence model of the first seed, and what it costs."""
    rows = []
    for name in ("sentence-0", *changes):
        if f"{name}.test" not in results:
            continue
        result = results[f"{name}.test"]["result"]
        coverage, speed = result["coverage"], result["speed"]["examples_per_second"]
        figures = (result["calibration"]["f1"], result["scores"]["f1"])
        covered = coverage["candidate"] / max(1, sum(coverage.values()))
        cells = [spread([value]) for value in figures] + [spread([covered], digits=2)]
        seconds = [results[name]["seconds"]] if name in results else []
        rows.append(["(base)" if name == "sentence-0" else name, *cells, spread(seconds, 1.0, 0), f"{speed:.0f}"])
    return markdown_table(("change", "valid F1", "test F1", "coverage", "training s", "examples/s"), rows)


def decoders_table(results: Results, base: str, decoders: Sequence[str]) -> str:
    """Ways of deciding, on the same model."""
    rows = []
    for name in decoders:
        found = [results.get(f"{base}.{name}.{split}") for split in ("valid", "test")]
        cells = [spread([] if entry is None else [entry["result"]["scores"]["f1"]]) for entry in found]
        if any(entry is not None for entry in found):
            rows.append([name, *cells])
    return markdown_table(("decoder", "valid F1", "test F1"), rows)
