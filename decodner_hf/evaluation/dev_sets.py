"""Keeps calibration to dev sets, and its result with the model.

In: names of data as a user gives them; a saved model's folder. Out: a verdict; a changed config.json.
Knows nothing of how a calibration is fitted.
"""

import json
from pathlib import Path
from typing import Any

from ..core.configuration import DecodNERConfig
from ..data.example_rows import SPLIT_NAMES
from .calibration import FITTED


def place_of_dev_set(fitted: str, dataset: str) -> tuple[str, str | None]:
    """Returns (source, split) of the examples to calibrate on: a file, else a split of `dataset`."""
    return (fitted, None) if Path(fitted).is_file() else (dataset, fitted)


def is_test_data(fitted: str, dataset: str, split: str | None) -> bool:
    """Whether `fitted` is a test set, or the data that is evaluated, named by any of its split's names or as a file.

    Args:
        fitted: what is to be calibrated on: a split of `dataset`, or a file.
        dataset: what is evaluated.
        split: its split, None where it has none.
    """
    path, evaluated = Path(fitted).resolve(), Path(dataset).resolve()
    names = (split,) if split is None else SPLIT_NAMES.get(split, (split,))
    is_split = fitted in names or (path.is_file() and path.stem in names and path.parent == evaluated)
    return "test" in path.stem.lower() or is_split or (path.is_file() and path == evaluated)


def own_config(folder: Path) -> dict[str, Any]:
    """Returns what a saved model's config.json holds.

    Raises:
        ValueError: a plain decoder, which keeps no calibration.
        OSError: no such file.
    """
    saved: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    if saved.get("model_type") != "decodner":
        raise ValueError(f"{folder} is a plain decoder: save the model with the pipeline's save_pretrained first.")
    return saved


def save_calibration(config: DecodNERConfig, saved: dict[str, Any], folder: Path) -> None:
    """Writes the calibrated values of `config` into a saved model's config.json; all else stays as in `saved`."""
    values = {name: getattr(config, name) for name in FITTED}
    text = json.dumps(saved | values, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
