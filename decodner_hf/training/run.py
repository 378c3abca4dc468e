"""Trains a model from labelled data and a decoder checkpoint, to a folder that the pipeline loads.

In: `TrainingOptions`. Out: `TrainingResult`, and in the output folder the model with tokenizer and card, and
checkpoints to continue from.
It joins the stages, each of which has a file: sources, model, documents, prompts, rows, trainer, card.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ..core.configuration import EXHAUSTIVE_SPAN_WORDS
from ..core.gguf_files import load_tokenizer
from ..core.hub import write_tokenizer
from ..core.modeling import DecodNERForSpanClassification
from ..core.prompting import PromptTemplate
from ..data.document_context import Context
from .card import TrainingRecord, write_training_card
from .documents import encode_sources
from .model import load_model
from .optimizers import MuonWithAdamW
from .options import OptionError, TrainingOptions
from .prompts import OpenPrompter, OpenTypes, fixed_prompt
from .rows import PackedRows
from .sources import TrainingData, read_training_data
from .trainer import SpanTrainer, TimeLimit, UnscoredError

OPEN_PROMPT_TOKENS = 512  # most tokens of an open prompt, where the model has twice as many positions
Report = Callable[[str], None]
RECORDED = (
    *("model", "epochs", "optimizer", "learning_rate", "row_tokens", "rows_per_step", "none_weight", "loss_divisor"),
    *("token_noise", "open_types", "context", "context_words", "lora_rank", "seed"),
)


@dataclass(frozen=True)
class TrainingResult:
    """What a run did.

    Attributes:
        output: the folder with the trained model.
        steps: optimizer steps that the model has seen, those before `resume` included.
        max_steps: steps that the run was to take.
        metrics: span `precision`, `recall` and `f1` on the dev examples, from 0 to 1; empty without any.
        wait_share: part of the time that the training loop waited for rows, from 0 to 1.
    """

    output: Path
    steps: int
    max_steps: int
    metrics: Mapping[str, float]
    wait_share: float

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done; if not, `max_seconds` stopped the run and `resume` continues it."""
        return self.steps >= self.max_steps


def train(options: TrainingOptions, report: Report = print) -> TrainingResult:
    """Trains a model and saves it.

    Args:
        options: what to train, on what, and how.
        report: called with lines for people, by the first process only.

    Raises:
        OptionError: an output folder with something in it.
        UnscoredError: a dev example that cannot be scored; what was trained until then is saved.
        ValueError: data, labels and model that do not fit together.
        OSError: files that cannot be read.
        ImportError: an optional package is needed and not installed.
    """
    started = time.monotonic()
    _check_output(options)
    first = PartialState(cpu=options.cpu).is_main_process  # the first call decides what the processes speak over
    say: Report = report if first else _silent
    data = read_training_data(options, say)
    model = load_model(options, data.labels)
    tokenizer = load_tokenizer(options.model)
    rows = make_rows(options, data, model, tokenizer, say)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loaders fork; encoding in parallel is over
    trainer = SpanTrainer(
        model,
        training_arguments(options, rows, bool(data.dev)),
        rows,
        tokenizer,
        dev=data.dev,
        dev_labels=data.dev_labels,
        none_weight=options.none_weight,
        loss_divisor=options.loss_divisor,
        continuation_weight=options.continuation_weight,
        context=Context.of(options.context, options.context_words),
        callbacks=None if options.max_seconds is None else [TimeLimit(started + options.max_seconds)],
        optimizers=(optimizer_for(options, model), None),
    )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    say(f"training {trained:,} weights on {trainer.args.device}, {trainer.args.world_size} process(es)")
    checkpoint = _last_checkpoint(options.output) if options.resume else None
    if options.resume:
        say(f"continuing from {checkpoint or f'the start: {options.output} holds no checkpoint'}")
    metrics = train_and_save(options, data, trainer, checkpoint)
    say(f"the loop waited for rows {100 * trainer.wait_share:.1f}% of the time")
    state = trainer.state
    return TrainingResult(Path(options.output), state.global_step, state.max_steps, metrics, trainer.wait_share)


def _silent(line: str) -> None:
    """Reports nothing: the first process does."""


def train_and_save(
    options: TrainingOptions, data: TrainingData, trainer: SpanTrainer, checkpoint: str | None
) -> dict[str, float]:
    """Trains, scores and saves the model; returns precision, recall and F1 on the dev examples, nothing without any.

    Raises:
        UnscoredError: a dev example that cannot be scored; what was trained until then is saved.
    """
    metrics: dict[str, float] = {}
    unscored: UnscoredError | None = None
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
        if data.dev:
            found = trainer.evaluate()
            metrics = {name: found[f"eval_{name}"] for name in ("precision", "recall", "f1")}
    except UnscoredError as error:
        unscored = error
    if trainer.is_world_process_zero():
        save(options, data, trainer, metrics)
    if unscored is not None:
        trainer.accelerator.wait_for_everyone()  # a launcher ends the others, who may be saving, with the first
        raise unscored
    return metrics


def make_rows(
    options: TrainingOptions,
    data: TrainingData,
    model: DecodNERForSpanClassification,
    tokenizer: PreTrainedTokenizerBase,
    report: Report,
) -> PackedRows:
    """Encodes the sources and packs them; reports what was left out."""
    config, template = model.config, PromptTemplate.from_config(model.config)
    limit = None if model.position_limit is None else model.position_limit.limit
    prompt = None
    if data.labels is not None:
        prompt = fixed_prompt(config.labels, tokenizer, template, options.continuation)
    if prompt is not None:
        prompt_tokens = len(prompt.prefix_token_ids)
    else:
        prompt_tokens = OPEN_PROMPT_TOKENS if limit is None else min(OPEN_PROMPT_TOKENS, limit // 2)
    cue_tokens = len(template.encode_cue(tokenizer))
    started = time.monotonic()
    encoded = encode_sources(
        data.sources,
        tokenizer,
        template,
        max_span_words=config.max_span_words,
        listed_span_words=options.listed_span_words or (EXHAUSTIVE_SPAN_WORDS if options.continuation else None),
        continuation=options.continuation,
        types=data.open_types if prompt is None else list(config.labels),
        max_tokens=None if limit is None else limit - prompt_tokens - cue_tokens,
        cue_tokens=cue_tokens,
        seed=options.seed,
        workers=options.workers,
    )
    for source, coverage in zip(data.sources, encoded.coverage, strict=True):
        report(f"{source.name}: {coverage.report()}")
    rows = PackedRows(
        encoded,
        prompt or OpenPrompter(_open_types(options, data, prompt_tokens), encoded, tokenizer, template),
        row_tokens=options.row_tokens,
        epochs=options.epochs,
        seed=options.seed,
        pad_token_id=tokenizer.pad_token_id or 0,
        token_noise=options.token_noise,
    )
    left_out = rows.layout.left_out
    left = f"; {left_out:,} documents longer than a row are left out" if left_out else ""
    report(f"{len(rows):,} rows of {options.row_tokens:,} nodes, {time.monotonic() - started:.0f} s{left}")
    return rows


def _open_types(options: TrainingOptions, data: TrainingData, prompt_tokens: int) -> OpenTypes:
    return OpenTypes(
        max_types=options.max_types,
        prompt_tokens=prompt_tokens,
        cross_source_negatives=options.cross_source_negatives,
        random_symbols=options.random_symbols,
        descriptions=data.notes.descriptions,
        aliases=data.notes.aliases,
        parents=data.notes.parents,
    )


def _uses_cuda(options: TrainingOptions) -> bool:
    return torch.cuda.is_available() and not options.cpu


def optimizer_for(options: TrainingOptions, model: DecodNERForSpanClassification) -> MuonWithAdamW | None:
    """Returns Muon where it is asked for; None leaves AdamW to the Trainer."""
    if options.optimizer != "muon":
        return None
    decay, fused = options.weight_decay, _uses_cuda(options)
    return MuonWithAdamW(model, options.learning_rate, betas=(0.9, 0.999), weight_decay=decay, fused=fused)


def training_arguments(options: TrainingOptions, rows: PackedRows, has_dev: bool) -> TrainingArguments:
    """Returns the Trainer's arguments for these rows; a step is `rows_per_step` rows on every process."""
    step_rows = PartialState().num_processes * options.rows_per_step
    steps = max(1, len(rows) // step_rows)
    if options.max_steps is not None:
        steps = min(steps, options.max_steps)
    between = max(1, rows.layout.rows_per_epoch // step_rows) * (options.evaluate_epochs or 1)
    cuda = _uses_cuda(options)
    workers = {"dataloader_persistent_workers": True, "dataloader_prefetch_factor": 8} if options.workers else {}
    return TrainingArguments(
        output_dir=str(options.output),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=options.rows_per_step,
        num_train_epochs=1,
        max_steps=options.max_steps if options.max_steps is not None else -1,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=round(options.warmup * steps),
        max_grad_norm=1.0,
        bf16=(options.dtype or ("bfloat16" if cuda else "float32")) == "bfloat16",
        use_cpu=options.cpu,
        remove_unused_columns=False,
        dataloader_num_workers=options.workers,
        dataloader_pin_memory=cuda,
        accelerator_config={"non_blocking": cuda},  # the GPU would idle during a copy that waits for it
        logging_steps=options.log_steps,
        logging_nan_inf_filter=False,  # it would wait for the GPU in every step
        eval_strategy="steps" if has_dev and options.evaluate_epochs else "no",
        eval_steps=between,
        save_strategy="steps" if options.evaluate_epochs else "no",
        save_steps=between,
        save_total_limit=1,
        load_best_model_at_end=has_dev and bool(options.evaluate_epochs) and options.keep_best,
        metric_for_best_model="f1" if has_dev else None,
        greater_is_better=True if has_dev else None,
        ddp_find_unused_parameters=False,
        seed=options.seed,
        report_to=[],
        disable_tqdm=True,
        **workers,
    )


def save(options: TrainingOptions, data: TrainingData, trainer: SpanTrainer, metrics: Mapping[str, float]) -> None:
    """Writes the trained model, its tokenizer and its card into the output folder."""
    model: DecodNERForSpanClassification = trainer.accelerator.unwrap_model(trainer.model)
    if options.lora_rank is None:
        model.to(getattr(torch, options.save_dtype))
    model.save_pretrained(options.output, max_shard_size=options.max_shard_size)
    write_tokenizer(trainer.processing_class, str(options.output))
    settings: dict[str, object] = {name: getattr(options, name) for name in RECORDED}
    if Path(options.model).exists():  # a path here says nothing elsewhere
        settings["model"] = Path(options.model).resolve().name
    record = TrainingRecord(
        sources=data.sources,
        dropped=data.dropped,
        metrics=metrics,
        dev=data.dev_name,
        dev_split=options.dev_split,
        settings=settings,
        licence=options.licence,
    )
    write_training_card(model.config, Path(options.output), record)


def _check_output(options: TrainingOptions) -> None:
    """Refuses to write over what an earlier run has left, unless the run continues it."""
    folder = Path(options.output)
    if not options.resume and folder.is_dir() and any(folder.iterdir()):
        raise OptionError(
            "output",
            f"{folder} exists and is not empty: name another folder, or continue its run with `resume`.",
        )


def _last_checkpoint(output: str | Path) -> str | None:
    """Returns the newest checkpoint in a folder, None where there is none."""
    found = sorted(Path(output).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return str(found[-1]) if found else None
