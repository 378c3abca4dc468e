"""Draws the plots of docs/performance.md from the logs of performance.sh, and prints its tables as Markdown.

In: a directory of logs, the last line of each being JSON. Out: docs/ladder.svg and docs/cost.svg (or another folder),
and on standard output the tables. Nothing is measured here.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

Figures = dict[str, Any]
WIDTH, BAR = 8.0, 0.34  # inches
PARTS = ("weight_bytes", "prefix_bytes", "activation_bytes", "graph_bytes")


def read_logs(directory: Path) -> dict[str, Figures]:
    """The JSON line of every log, by the log's name; a ValueError if there is none."""
    found = {}
    for path in sorted(directory.glob("*.log")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines and lines[-1].startswith("{"):
            found[path.stem] = json.loads(lines[-1])
    if not found:
        raise ValueError(
            f"no log in {directory} ends with a line of JSON: run scripts/benchmarks/performance.sh {directory} first."
        )
    return found


def draw_ladder(ladders: list[Figures], path: Path) -> None:
    """Milliseconds of every way to score a document's spans, one panel a model."""
    rungs = max(len(ladder["rungs"]) for ladder in ladders)
    figure, panels = plt.subplots(1, len(ladders), figsize=(WIDTH, 1 + BAR * rungs), sharey=True, squeeze=False)
    for panel, ladder in zip(panels[0], ladders, strict=True):
        names = [rung["name"] for rung in ladder["rungs"]]
        times = [rung["host_ms"] for rung in ladder["rungs"]]
        colours = ["tab:green" if name.startswith("forest") else "tab:gray" for name in names]
        bars = panel.barh(names, times, color=colours)
        panel.bar_label(bars, [f"{time:,.0f}" if time >= 100 else f"{time:.1f}" for time in times], padding=2, size=7)
        panel.axvline(ladder["floor_ms"], color="tab:red", linestyle="--", label=f"floor {ladder['floor_ms']:.1f} ms")
        panel.set(xscale="log", xlabel="milliseconds a document", title=f"{ladder['preset']}, {ladder['dtype']}")
        panel.set_xlim(right=6 * max(times))
        panel.tick_params(labelsize=8)
        panel.legend(fontsize=7, loc="lower right")
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def draw_cost(corpora: list[Figures], path: Path) -> None:
    """Seconds of a document against words x width."""
    figure, panel = plt.subplots(figsize=(WIDTH * 0.6, WIDTH * 0.42))
    for corpus, marker in zip(corpora, "os^v", strict=False):
        work = [point["words"] * point["width"] for point in corpus["points"]]
        times = [1e3 * point["seconds"] for point in corpus["points"]]
        panel.loglog(work, times, marker, label=f"{corpus['preset']}: exponent {corpus['exponent']:.2f}")
    panel.set(xlabel="words x longest span in words", ylabel="milliseconds a document")
    panel.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def ladder_table(ladder: Figures) -> list[str]:
    """Markdown lines of one ladder."""
    floor, baseline = ladder["floor_ms"], ladder["baseline_ms"]
    lines = [
        f"{ladder['preset']}, {ladder['dtype']}, {ladder['spans']} spans, {ladder['nodes']} nodes; floor "
        f"{floor:.2f} ms ({ladder['products_ms']:.2f} matrix products + {ladder['prefix_attention_ms']:.2f} prefix "
        f"attention), {ladder['flop_floor_ms']:.2f} ms at the measured {ladder['peak_tflops']:.0f} TFLOP/s; "
        f"compiled in {ladder['compile_s'] or 0:.0f} s",
        "",
        "| method | ms | x floor | in a row, ms | x floor | speed-up | tokens | error |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for rung in ladder["rungs"]:
        streamed = rung["stream_ms"]
        in_a_row = "| |" if streamed is None else f"{streamed:.2f} | {streamed / floor:.2f} |"
        sampled = "" if rung["from_spans"] == ladder["spans"] else f" ({rung['from_spans']} spans timed)"
        lines.append(
            f"| {rung['name']}{sampled} | {rung['host_ms']:,.2f} | {rung['host_ms'] / floor:.2f} | "
            f"{in_a_row} {baseline / rung['host_ms']:.2f} | {rung['rows_tokens']:,} | "
            f"{rung['error']:.1e} |"
        )
    sentence = ", ".join(f"{name} {milliseconds:.2f} ms" for name, milliseconds in ladder["sentence_ms"].items())
    return [*lines, "", f"A sentence's pass, {ladder['sentence_nodes']} nodes: {sentence}."]


def corpus_table(corpora: list[Figures]) -> list[str]:
    """Markdown lines of all corpora."""
    lines = [
        "| model | corpus | documents | nodes | first run, s | documents/s | nodes/s | of the floor | host | "
        "peak GiB | weights + prefix + activations + graphs |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for corpus in corpora:
        for line in corpus["corpora"]:
            parts = [line[name] / 2**30 for name in PARTS]
            peak = "" if line["peak_bytes"] is None else f"{line['peak_bytes'] / 2**30:.2f}"
            lines.append(
                f"| {corpus['preset']} | {line['name']} | {line['documents']:,} | {line['nodes']:,} | "
                f"{line['first_seconds']:.2f} | "
                f"{line['documents'] / line['seconds']:,.1f} | {line['nodes'] / line['seconds']:,.0f} | "
                f"{line['floor_seconds'] / line['seconds']:.0%} | {line['host_share']:.0%} | {peak} | "
                f"{' + '.join(f'{part:.2f}' for part in parts)} |"
            )
    return lines


def attention_table(measurements: list[Figures]) -> list[str]:
    """Returns the Markdown table of bench_attention: a row per size, a column per method, microseconds and TFLOP/s."""
    cells: dict[tuple[int, int, int], dict[str, str]] = {}
    methods: dict[str, None] = {}
    for line in measurements:
        size = (line["head_size"], line["nodes"], line["prefix"])
        methods[line["method"]] = None
        cells.setdefault(size, {})[line["method"]] = f"{1e3 * line['ms']:,.0f} ({line['tflops']:.0f})"
    lines = [f"| head size | nodes | prefix | {' | '.join(methods)} |", "|---" * 3 + "|---:" * len(methods) + "|"]
    for (head_size, nodes, prefix), found in cells.items():
        row = " | ".join(found.get(method, "") for method in methods)
        lines.append(f"| {head_size} | {nodes:,} | {prefix:,} | {row} |")
    return lines


def main() -> None:
    """Reads the logs, draws, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("logs", type=Path, help="directory of the logs")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="directory of the plots")
    options = parser.parse_args()
    logs = read_logs(options.logs)
    ladders = [figures for name, figures in logs.items() if name.startswith("ladder")]
    corpora = [figures for name, figures in logs.items() if name.startswith("corpus")]
    plt.rcParams["svg.fonttype"] = "none"
    if ladders:
        draw_ladder(ladders, options.out / "ladder.svg")
    if corpora:
        draw_cost(corpora, options.out / "cost.svg")
    tables = [ladder_table(ladder) for ladder in ladders]
    tables += [corpus_table(corpora)] if corpora else []
    for kind in ("attention_documents", "attention_grid"):
        measured = [line for name, log in logs.items() if name.startswith(kind) for line in log["measurements"]]
        tables += [attention_table(measured)] if measured else []
    print("\n\n".join("\n".join(table) for table in tables))


if __name__ == "__main__":
    main()
