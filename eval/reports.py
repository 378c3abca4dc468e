"""Shows evaluation results: several sets as one table, a set as pictures and as metadata of a model card.

In: results as `decodner_hf.evaluation.measuring.measure` makes them. Out: text, PNG files, YAML.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from decodner_hf.evaluation.measuring import percent

PICTURE_DPI = 150


def zero_shot_table(results: dict[str, dict[str, Any]], average: float) -> str:
    """Returns a line per set, and the plain average."""
    lines = [f"{'set':24} {'P':>6} {'R':>6} {'F1':>6}"]
    for name, result in results.items():
        lines.append(f"{name:24} " + " ".join(percent(result["scores"][key]) for key in ("precision", "recall", "f1")))
    return "\n".join([*lines, f"{'average':38} {percent(average)}"])


# ------------------------------------------------------------------ pictures


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Writes confusion.png and reliability.png; an ImportError says what to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'decodner-hf[eval]'.") from error
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"confusion.png": _draw_confusion, "reliability.png": _draw_reliability}
    for name, paint in pictures.items():
        figure = Figure(figsize=(6, 5), layout="constrained")
        paint(figure.add_subplot(), result)
        figure.savefig(folder / name, dpi=PICTURE_DPI)
    return [folder / name for name in pictures]


def _draw_confusion(axes: Any, result: dict[str, Any]) -> None:
    names, counts = result["confusion"]["labels"], result["confusion"]["counts"]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            if count and len(names) <= 20:
                shade = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, count, ha="center", va="center", color=shade, fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="gold", title=f"{result['dataset']}: spans with equal bounds")


def _draw_reliability(axes: Any, result: dict[str, Any]) -> None:
    bins = [row for row in result["reliability"]["bins"] if row["count"]]
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="calibrated")
    axes.plot([row["score"] for row in bins], [row["accuracy"] for row in bins], marker="o", label="model")
    for row in bins:
        axes.annotate(
            row["count"], (row["score"], row["accuracy"]), fontsize=7, xytext=(3, -9), textcoords="offset points"
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="share right", title=result["dataset"])
    axes.legend()


# ------------------------------------------------------------------ model card


def add_to_card(result: dict[str, Any], folder: Path, dataset_id: str) -> list[Path]:
    """Adds a result to the model card of a saved model, and as `.eval_results/NAME.yaml` for the Hub.

    F1 and the like are fractions. A result of the same dataset and split is replaced.

    Raises:
        ValueError: a folder without a model card.
    """
    import yaml  # comes with huggingface_hub
    from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml

    readme = folder / "README.md"
    if not readme.is_file():
        raise ValueError(f"{folder} has no README.md: save the model with its card first.")
    card = ModelCard.load(readme)
    place = {
        "task_type": "token-classification",
        "dataset_type": dataset_id,
        "dataset_name": result["dataset"],
        "dataset_split": result["split"],
        "task_name": f"Named entity recognition ({result['context']})",
    }
    fresh = [
        EvalResult(**place, metric_type=name, metric_name=name, metric_value=round(result["scores"][name], 4))
        for name in ("precision", "recall", "f1")
    ]
    kept = [old for old in card.data.eval_results or [] if not any(old.is_equal_except_value(new) for new in fresh)]
    card.data.eval_results = [*kept, *fresh]
    card.data.model_name = card.data.model_name or folder.name
    card.save(readme)
    entry = EvalResultEntry(
        dataset_id=dataset_id,
        task_id=f"{result['split'] or 'default'}_{result['context']}",
        value=round(result["scores"]["f1"], 4),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        notes="micro F1 of exact spans",
    )
    target = folder / ".eval_results" / f"{dataset_id.replace('/', '_')}_{entry.task_id}.yaml"
    target.parent.mkdir(exist_ok=True)
    target.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")
    return [readme, target]
