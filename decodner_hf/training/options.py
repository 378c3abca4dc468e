"""The options of a training run: typed, with defaults, and checked when they are made.

In: keyword arguments, from Python or from the command line. Out: `TrainingOptions`. Knows nothing of argparse.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.validation import check_count, check_number

if TYPE_CHECKING:
    from ..data.examples import Example
    from ..data.label_maps import LabelMapSource
    from .sources import TrainingSource

SOURCE_KEYS = (
    *("path", "split", "name", "label_map", "labels", "partial", "repeat", "limit", "licence"),
    *("case", "where", "context", "context_words"),
)
CHOICES = {
    "context": ("sentence", "document", "preceding"),
    "optimizer": ("adamw", "muon"),
    "dtype": ("bfloat16", "float32"),
    "save_dtype": ("float32", "bfloat16"),
}
WORKERS = min(4, os.cpu_count() or 1)
ROW_MULTIPLE = 128  # FlexAttention's tile


class OptionError(ValueError):
    """An option that cannot be used.

    Attributes:
        option: the name of its field in `TrainingOptions`, so that a command line can spell it in its own way.
        problem: what was given, what is allowed, what to do; other options stand between backquotes.
    """

    def __init__(self, option: str, problem: str) -> None:
        """Makes the message of both."""
        super().__init__(f"{option} {problem}")
        self.option, self.problem = option, problem


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What `train` trains, on what, and how.

    Attributes:
        model: the decoder to start from, or a model of this package: a folder, a GGUF file or a Hub id.
        output: the folder of the trained model; new or empty, unless `resume`.

        train: labelled data: a file, a folder with a file a split, or a Hub id. Either this or `sources`.
        train_split: the split of a folder or a Hub dataset.
        sources: several sources: a JSON file that lists them (keys: `SOURCE_KEYS`), or the sources themselves.
        label_map: what gold labels are called, as `LabelMap.read` takes it; for sources without a map of their own.
        dev: labelled data to report span F1 on, given as `train`, or the examples themselves.
        dev_split: its split.
        dev_label_map: its label map; `label_map` if None.
        decontaminate: evaluation sets, each PATH or PATH:SPLIT: training examples that share ten words in a row with
            one of them are dropped.
        context: "sentence" reads sentences alone, "document" joins those of a document, "preceding" reads each after
            the words before it.
        context_words: most words of a joined passage, or before a sentence.
        limit: no more than so many examples of each source.

        labels: fixed labels in prompt order, with their descriptions if it is a mapping; the data's if None.
        open_types: asks each example for types of its own in place of fixed labels.
        type_notes: JSON files for open types: type -> {"description", "aliases", "parents"}.
        max_types: most labels of an open prompt.
        cross_source_negatives: part of the open prompts that also ask for types of other sources, from 0 to 1.
        random_symbols: part of the open prompts whose label symbols are drawn at random, from 0 to 1.
        max_span_words: longest candidate span; the model's if None.
        listed_span_words: up to this length training scores every span; longer ones only if they are gold spans, their
            word prefixes, or one word longer than one. If None: 8 with `continuation`, without it no limit.
        continuation: trains the question whether a longer name of a type asked for begins like a span, so that the
            model grows spans; of a model that did not, the longest candidate is then 32 words unless `max_span_words`
            says otherwise.
        continuation_weight: weight of the question's loss.
        answer_cue: text between a span and its label; the model's if None.
        lora_rank: trains adapters of this rank instead of all weights.
        load_in_4bit: quantizes the frozen decoder; needs `lora_rank`.
        save_dtype: of the saved weights, "float32" or "bfloat16".
        max_shard_size: of the saved files, as `save_pretrained` takes it.
        licence: of the trained model, for its card.

        epochs: passes over the data.
        learning_rate: the highest; it rises over the first `warmup` of the steps and falls along a cosine.
        optimizer: "adamw", or "muon" for the matrices of the layers.
        weight_decay: of the optimizer.
        warmup: part of the steps, from 0 to 1.
        row_tokens: nodes of a packed row, a multiple of 128.
        rows_per_step: rows that a step accumulates, on each process.
        max_steps: ends training after so many steps.
        max_seconds: stops training then, with a checkpoint that `resume` continues from.
        none_weight: weight of the spans that are no entity.
        loss_divisor: the summed loss is divided by this times the number of gold spans.
        token_noise: part of the tokens after the prompt that are masked, drawn anew for every row, from 0 to below 1.
        dtype: of the computation, "bfloat16" or "float32"; bfloat16 on a GPU and float32 on the CPU if None.
        gradient_checkpointing: keeps less in memory and takes a third more time.
        compile: compiles norms and MLPs too; attention is compiled in any case.
        cpu: trains on the CPU.
        workers: processes that make rows; 0 makes them in this one.
        seed: of everything drawn at random.
        log_steps: steps between two lines of the log.
        evaluate_epochs: epochs between two evaluations, each with a checkpoint; 0 evaluates at the end only.
        keep_best: ends with the checkpoint that is best on `dev`.
        resume: continues from the newest checkpoint in `output`.

    Raises:
        OptionError: an option out of its range, or options that contradict each other.
    """

    model: str
    output: str | Path

    train: str | Path | None = None
    train_split: str = "train"
    sources: "str | Path | Sequence[TrainingSource] | None" = None
    label_map: "LabelMapSource | None" = None
    dev: "str | Path | Sequence[Example] | None" = None
    dev_split: str = "dev"
    dev_label_map: "LabelMapSource | None" = None
    decontaminate: Sequence[str] = ()
    context: str = "sentence"
    context_words: int = 400
    limit: int | None = None

    labels: Mapping[str, str | None] | Sequence[str] | None = None
    open_types: bool = False
    type_notes: Sequence[str | Path] = ()
    max_types: int = 20
    cross_source_negatives: float = 0.0
    random_symbols: float = 0.25
    max_span_words: int | None = None
    listed_span_words: int | None = None
    continuation: bool = False
    continuation_weight: float = 0.1
    answer_cue: str | None = None
    lora_rank: int | None = None
    load_in_4bit: bool = False
    save_dtype: str = "float32"
    max_shard_size: str = "5GB"
    licence: str | None = None

    epochs: int = 8
    learning_rate: float = 3e-4
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    warmup: float = 0.05
    row_tokens: int = 16384
    rows_per_step: int = 1
    max_steps: int | None = None
    max_seconds: float | None = None
    none_weight: float = 1.0
    loss_divisor: float = 4.0
    token_noise: float = 0.0
    dtype: str | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    cpu: bool = False
    workers: int = WORKERS
    seed: int = 0
    log_steps: int = 20
    evaluate_epochs: int = 1
    keep_best: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        """Checks every option alone, then those that depend on one another."""
        counts = ("epochs", "rows_per_step", "log_steps", "context_words", "max_types", "row_tokens")
        optional = ("limit", "max_span_words", "listed_span_words", "lora_rank", "max_steps")
        for name in (*counts, *(name for name in optional if getattr(self, name) is not None)):
            self._check(name, check_count)
        for name in ("workers", "seed", "evaluate_epochs"):
            self._check(name, check_count, 0)
        for name in ("learning_rate", "weight_decay", "none_weight", "continuation_weight"):
            self._check(name, check_number, 0)
        for name in ("warmup", "cross_source_negatives", "random_symbols", "token_noise"):
            self._check(name, check_number, 0, 1)
        for name, allowed in CHOICES.items():
            given = getattr(self, name)
            if given not in allowed and not (name == "dtype" and given is None):
                raise OptionError(name, f"must be one of {', '.join(allowed)}, not {given!r}.")
        self._check_values()
        self._check_combinations()

    def _check(self, name: str, check: Callable[..., None], *limits: float) -> None:
        try:
            check(name, getattr(self, name), *limits)
        except ValueError as error:
            raise OptionError(name, str(error).removeprefix(f"{name} ")) from None

    def _check_values(self) -> None:
        if self.row_tokens % ROW_MULTIPLE:
            raise OptionError("row_tokens", f"must be a multiple of {ROW_MULTIPLE}, not {self.row_tokens}.")
        if self.token_noise == 1:
            raise OptionError("token_noise", "must be below 1: with all tokens masked nothing can be learned.")
        for name in ("loss_divisor", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(name, f"must be above 0, not {value!r}.")
        for name in ("labels", "decontaminate", "type_notes"):
            if isinstance(getattr(self, name), str):
                raise OptionError(name, f"must be a list, not the string {getattr(self, name)!r}: put it in a list.")

    def _check_combinations(self) -> None:
        if (self.train is None) == (self.sources is None):
            raise OptionError("train", "or else `sources` must name the training data, and not both.")
        if self.open_types and self.labels:
            raise OptionError("labels", "are for fixed labels: leave them out with `open_types`.")
        if self.load_in_4bit and self.lora_rank is None:
            raise OptionError("load_in_4bit", "needs `lora_rank`: a quantized decoder cannot be trained itself.")
        if self.keep_best and self.dev is None:
            raise OptionError("keep_best", "needs `dev`, the examples to compare checkpoints on.")

    @property
    def label_descriptions(self) -> dict[str, str | None]:
        """The fixed labels in prompt order, each with its description or None; empty where the data's are meant."""
        if isinstance(self.labels, Mapping):
            return dict(self.labels)
        return dict.fromkeys(self.labels or ())
