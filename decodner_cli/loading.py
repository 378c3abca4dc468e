"""Loads the pipeline that the options name.

In: parsed arguments. Out: a pipeline that answers, or an error of one line that names model and reason.
Knows nothing of commands.
"""

import argparse
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from .pipeline_arguments import check_model_folder

if TYPE_CHECKING:
    from decodner_hf.core.pipeline import DecodNERPipeline
    from decodner_hf.corpus.engine import LoadPipeline


@contextmanager
def quick_imports() -> Iterator[None]:
    """Pauses garbage collection while modules and models are loaded, and exempts them from it afterwards.

    Thousands of modules hold nothing that is garbage; searching them takes a sixth of the time that loading takes,
    and as long again when the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def load_pipeline(options: argparse.Namespace) -> "DecodNERPipeline":
    """Loads the model that the options name, or the package's own.

    Raises:
        ValueError: options or a model that the pipeline refuses.
        OSError: a model that cannot be found.
        RuntimeError: a model whose files are broken.
    """
    if options.model is not None:
        check_model_folder(options.model)
    with quick_imports():
        return _load(options)


def loader_by_device(options: argparse.Namespace) -> "LoadPipeline":
    """Returns a function from a device to the pipeline on it, which worker processes can import and call."""
    chosen = {name: value for name, value in vars(options).items() if name not in ("run", "check", "parser")}
    return partial(_load_on, chosen)


def _load_on(chosen: dict[str, Any], device: str) -> "DecodNERPipeline":
    return load_pipeline(argparse.Namespace(**chosen | {"device": device}))


def _load(options: argparse.Namespace) -> "DecodNERPipeline":
    import torch

    from decodner_hf.default_model import default_model

    model = options.model or str(default_model())
    if (options.device or "").startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"--device {options.device}: this machine has no GPU that torch can use; leave it out for cpu."
        )
    _show_only_downloads()
    try:
        pipe = _pipeline(model, options)
    except ImportError:  # names a package to install
        raise
    except Exception as error:  # libraries that read broken files raise anything: KeyError, SafetensorError
        if isinstance(error, (ValueError, OSError)) and model in str(error):
            raise type(error)(one_line(error)) from error
        kind = "" if isinstance(error, (ValueError, OSError, RuntimeError)) else f"{type(error).__name__}: "
        raise RuntimeError(f"cannot load {model}: {kind}{one_line(error)}") from error
    if options.labels is None and not pipe.model.config.entity_labels:
        raise ValueError(f"{model} has no labels of its own: name some with --labels.")
    pipe("")  # refuses now, and once, what the model cannot serve: a label named None for instance
    return pipe


def _pipeline(model: str, options: argparse.Namespace) -> "DecodNERPipeline":
    """Builds the pipeline from its parts: `transformers.pipeline` hides a part's error among tracebacks."""
    from decodner_hf.core.gguf_files import load_tokenizer
    from decodner_hf.core.modeling import DecodNERForSpanClassification
    from decodner_hf.core.pipeline import DecodNERPipeline

    loaded = DecodNERForSpanClassification.from_pretrained(model, dtype=options.dtype)
    tokenizer = load_tokenizer(loaded.config.name_or_path or model)  # an adapter has its base's
    chosen = {
        "candidate_labels": options.labels,
        "threshold": _threshold(options),
        "overlap": options.overlap,
        "multi_label": options.multi_label or None,
        "return_all_scores": options.all_scores or None,
        "max_span_words": options.max_span_words,
        "growth": options.growth,
        "growth_threshold": options.growth_threshold,
        "long_documents": options.long_documents,
        "token_budget": options.token_budget,
        "compile": options.compile or None,
    }
    return DecodNERPipeline(
        model=loaded,
        tokenizer=tokenizer,
        task="decodner-ner",
        device=options.device,
        **{name: value for name, value in chosen.items() if value is not None},
    )


def _threshold(options: argparse.Namespace) -> float | dict[str, float] | None:
    general: float | None = options.threshold
    of_labels: dict[str, float] = options.label_threshold
    if of_labels and general is not None:
        return {label: of_labels.get(label, general) for label in options.labels}
    return of_labels or general


def _show_only_downloads() -> None:
    """Switches the bars of loading off; downloads keep theirs on a terminal."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()


def one_line(error: Exception) -> str:
    """Returns the error's message on one line."""
    return " ".join(str(error).split())
