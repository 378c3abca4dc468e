"""`decodner train`: from labelled data and a decoder checkpoint to a folder that the pipeline loads.

In: command-line options. Out: the trained model with tokenizer and card, checkpoints to go on from, and reports.
It joins the stages, each of which has a file: examples, overlaps, model, documents, prompts, rows, trainer, card.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import AutoTokenizer, TrainerCallback, TrainingArguments

from ..core.configuration import DecodNERConfig
from ..core.hub import write_tokenizer
from ..core.prompting import PromptTemplate
from .card import TrainingRecord, write_training_card
from .documents import EncodedSources, encode_sources
from .model import load_model
from .muon import Muon
from .prompts import OpenPrompter, OpenTypes, fixed_prompt
from .rows import PackedRows
from .sources import TrainingPlan, context_of, read_plan
from .trainer import SpanTrainer, UnscoredError

OK, UNFINISHED = 0, 3
Say = Callable[[str], None]
STEPS_TOGETHER = 10  # ranks ask one another about the time every so many steps


class TimeLimit(TrainerCallback):
    """Stops training, with a checkpoint, when the time is up; all ranks at the same step."""

    def __init__(self, end: float) -> None:
        """`end` on the monotonic clock, in seconds."""
        self.end = end

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Asks for a checkpoint and the end."""
        late = time.monotonic() > self.end
        if PartialState().num_processes > 1:
            if state.global_step % STEPS_TOGETHER:
                return
            late = bool(reduce(torch.tensor(float(late), device=args.device), "sum").item())
        if late:
            control.should_save = control.should_training_stop = True


def run_train(options: argparse.Namespace) -> int:
    """Runs `decodner train`; returns 0 when all steps are done, 3 when --max-seconds stopped it.

    Raises:
        ValueError: data, labels and model that do not fit together, an output folder with something in it.
        OSError: files that cannot be read.
    """
    started = time.monotonic()
    _check_output(options)
    say: Say = PartialState(cpu=options.cpu).print  # the first to ask decides what the processes speak over
    plan = read_plan(options, say)
    model = load_model(options, plan)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    template = PromptTemplate.from_config(model.config)
    rows = make_rows(options, plan, model, tokenizer, template, say)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loaders fork; encoding in parallel is over
    trainer = SpanTrainer(
        model,
        training_arguments(options, rows, bool(plan.dev)),
        rows,
        tokenizer,
        dev=plan.dev,
        dev_labels=plan.dev_labels,
        none_weight=options.none_weight,
        loss_divisor=options.loss_divisor,
        context=context_of(vars(options)),
        callbacks=None if options.max_seconds is None else [TimeLimit(started + options.max_seconds)],
        optimizers=(optimizer_for(options, model), None),
    )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    say(f"training {trained:,} weights on {trainer.args.device}, {trainer.args.world_size} process(es)")
    checkpoint = _last_checkpoint(options) if options.resume else None
    if options.resume:
        say(f"going on from {checkpoint or f'the start: {options.output} holds no checkpoint'}")
    metrics = train_and_save(options, plan, trainer, checkpoint, say)
    say(json.dumps({"output": str(options.output), "steps": trainer.state.global_step} | metrics))
    if trainer.state.global_step < trainer.state.max_steps:
        say(f"--max-seconds stopped it before step {trainer.state.max_steps:,}; --resume goes on")
        return UNFINISHED
    return OK


def train_and_save(
    options: argparse.Namespace, plan: TrainingPlan, trainer: SpanTrainer, checkpoint: str | None, say: Say
) -> dict[str, float]:
    """Trains, scores and saves the model; returns its metrics on the dev set, none without one.

    Raises:
        UnscoredError: a dev example that cannot be scored; what was trained until then is saved.
    """
    metrics: dict[str, float] = {}
    unscored: UnscoredError | None = None
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
        say(f"the loop waited for rows {100 * trainer.wait_share:.1f}% of the time")
        metrics = trainer.evaluate() if plan.dev else {}
    except UnscoredError as error:
        unscored = error
    if trainer.is_world_process_zero():
        save(options, plan, trainer, metrics)
    if unscored is not None:
        trainer.accelerator.wait_for_everyone()  # a launcher ends the others, who may be saving, with the first
        raise unscored
    return metrics


def make_rows(
    options: argparse.Namespace,
    plan: TrainingPlan,
    model: Any,
    tokenizer: Any,
    template: PromptTemplate,
    say: Say,
) -> PackedRows:
    """Encodes the sources and packs them; says what was left out."""
    config: DecodNERConfig = model.config
    limit = model.position_limit.limit if model.position_limit is not None else None
    prompt = None
    reserve = min(512, limit // 2) if limit is not None else 512
    if not options.open_types:
        prompt = fixed_prompt(config.labels, tokenizer, template)
        reserve = len(prompt.prefix_token_ids)
    cue = len(template.encode_cue(tokenizer))
    started = time.monotonic()
    encoded = encode_sources(
        plan.sources,
        tokenizer,
        template,
        max_span_words=config.max_span_words,
        types=open_types(plan) if options.open_types else list(config.labels),
        max_tokens=None if limit is None else limit - reserve - cue,
        cue_tokens=cue,
        seed=options.seed,
        workers=options.workers,
    )
    for source, coverage in zip(plan.sources, encoded.coverage, strict=True):
        say(f"{source.name}: {coverage.report()}")
    rows = PackedRows(
        encoded,
        prompt if prompt is not None else _open_prompter(options, plan, encoded, tokenizer, template, reserve),
        row_tokens=options.row_tokens,
        epochs=options.epochs,
        seed=options.seed,
        pad_token_id=tokenizer.pad_token_id or 0,
        token_noise=options.token_noise,
    )
    left = f"; {rows.plan.left_out:,} documents longer than a row are left out" if rows.plan.left_out else ""
    say(f"{len(rows):,} rows of {options.row_tokens:,} nodes, {time.monotonic() - started:.0f} s{left}")
    return rows


def open_types(plan: TrainingPlan) -> list[str]:
    """The types of all sources, then the more general types that they belong to."""
    own = dict.fromkeys(label for source in plan.sources for label in source.labels)
    return list(own | dict.fromkeys(parent for label in own for parent in plan.parents.get(label, ())))


def _open_prompter(
    options: argparse.Namespace,
    plan: TrainingPlan,
    encoded: EncodedSources,
    tokenizer: Any,
    template: PromptTemplate,
    prompt_tokens: int,
) -> OpenPrompter:
    settings = OpenTypes(
        most=options.most_types,
        prompt_tokens=prompt_tokens,
        strangers=options.strangers,
        strange_symbols=options.strange_symbols,
        descriptions=plan.descriptions,
        aliases=plan.aliases,
        parents=plan.parents,
    )
    return OpenPrompter(settings, encoded, tokenizer, template)


def optimizer_for(options: argparse.Namespace, model: Any) -> Muon | None:
    """Muon where it is asked for; None leaves AdamW to the Trainer."""
    if options.optimizer != "muon":
        return None
    fused = torch.cuda.is_available() and not options.cpu
    return Muon(model, options.learning_rate, betas=(0.9, 0.999), weight_decay=options.weight_decay, fused=fused)


def training_arguments(options: argparse.Namespace, rows: PackedRows, has_dev: bool) -> TrainingArguments:
    """The Trainer's arguments for these rows; a step is a row on every process, `rows_per_step` times."""
    processes = PartialState().num_processes
    steps = max(1, len(rows) // (processes * options.rows_per_step))
    if options.max_steps is not None:
        steps = min(steps, options.max_steps)
    epoch = max(1, rows.plan.rows_per_epoch // (processes * options.rows_per_step))
    cuda = torch.cuda.is_available() and not options.cpu
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
        accelerator_config={"non_blocking": cuda},  # a copy that waits for the GPU would let it run dry
        logging_steps=options.log_steps,
        logging_nan_inf_filter=False,  # it would wait for the GPU in every step
        eval_strategy="steps" if has_dev and options.evaluate_epochs else "no",
        eval_steps=epoch * (options.evaluate_epochs or 1),
        save_strategy="steps" if options.evaluate_epochs else "no",
        save_steps=epoch * (options.evaluate_epochs or 1),
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


def save(options: argparse.Namespace, plan: TrainingPlan, trainer: SpanTrainer, metrics: dict[str, float]) -> None:
    """Writes the trained model, its tokenizer and its card into the output folder."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if options.lora_rank is None:
        model.to(getattr(torch, options.save_dtype))
    model.save_pretrained(options.output, max_shard_size=options.max_shard_size)
    write_tokenizer(trainer.processing_class, str(options.output))
    settings = {name: getattr(options, name) for name in RECORDED}
    if Path(options.model).exists():  # a path here says nothing elsewhere
        settings["model"] = Path(options.model).resolve().name
    record = TrainingRecord(
        sources=plan.sources,
        dropped=plan.dropped,
        metrics={name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")},
        dev=options.dev,
        dev_split=options.dev_split,
        settings=settings,
        licence=options.licence,
    )
    write_training_card(model.config, Path(options.output), record)


RECORDED = (
    *("model", "epochs", "optimizer", "learning_rate", "row_tokens", "rows_per_step", "none_weight", "loss_divisor"),
    "token_noise",
    *("open_types", "context", "context_words", "lora_rank", "seed"),
)


def _check_output(options: argparse.Namespace) -> None:
    """Refuses to write over what an earlier run has left, unless it is to be gone on with."""
    folder = Path(options.output)
    if not options.resume and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"--output {folder} is there already, and not empty: name another folder, or give --resume to go on from "
            "the newest checkpoint in it."
        )


def _last_checkpoint(options: argparse.Namespace) -> str | None:
    """The newest checkpoint in the output folder, None where there is none."""
    found: Sequence[Path] = sorted(
        Path(options.output).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])
    )
    return str(found[-1]) if found else None
