"""Subclasses transformers' Trainer for span scoring: packed rows in, checkpoints that the pipeline loads out.

It differs from its base in what a packed row needs: the loss is normalised by gold spans across accumulation and
ranks, rows come in their own order, checkpoints are read back by the decoder's own class or not at all, and
evaluation is the pipeline on labelled examples. Knows nothing of how rows are made.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..core.adapters import ADAPTER_WEIGHTS, PEFT_PREFIX, active_adapters
from ..core.attention import ATTENTION_NAME
from ..core.compatibility import native_class
from ..core.hub import TASK
from ..core.label_head import SpanClassifierOutput, continuation_loss, span_loss
from ..core.modeling import DecodNERForSpanClassification
from ..core.pipeline import DecodNERPipeline
from ..core.validation import check_number
from ..data.document_context import Context
from ..data.examples import Example
from ..evaluation.labelled_scoring import evaluate as evaluate_spans
from ..evaluation.span_metrics import precision_recall_f1
from .rows import HOST_ARRAYS, PackedRows, collate_row

FIXED_ARGUMENTS = {"per_device_train_batch_size": 1, "remove_unused_columns": False}
TARGETS = ("labels", "span_continues")  # of a row: what the model does not see
TIME_CHECK_STEPS = 10  # ranks ask one another about the time every so many steps


class UnscoredError(ValueError):
    """Dev examples that cannot be scored; every process raises it, whichever of them met the example."""


class TimeLimit(TrainerCallback):
    """Stops training, with a checkpoint, when the time is up; all ranks at the same step."""

    def __init__(self, end: float) -> None:
        """`end` is on the monotonic clock, in seconds."""
        self.end = end

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Asks for a checkpoint and the end."""
        late = time.monotonic() > self.end
        if PartialState().num_processes > 1:
            if state.global_step % TIME_CHECK_STEPS:
                return
            late = bool(reduce(torch.tensor(float(late), device=args.device), "sum").item())
        if late:
            control.should_save = control.should_training_stop = True


class SpanTrainer(Trainer):
    """Trains a `DecodNERForSpanClassification` on `PackedRows`.

    Each process takes one packed row at a time; several GPUs by `accelerate launch`. All epochs are in the data set,
    so that `num_train_epochs` is 1 and the state's epoch runs from 0 to 1.

    Args:
        model: the model; adapters are added before.
        args: transformers' arguments; batch size 1, `remove_unused_columns=False`.
        rows: the training rows, or None to evaluate only.
        tokenizer: saved with every checkpoint.
        dev: labelled examples for `evaluate`, which reports span F1.
        dev_labels: labels that dev examples are asked for; the model's own if None.
        none_weight: weight of the spans that are no entity in the loss.
        loss_divisor: the summed loss is divided by this and the number of gold spans.
        continuation_weight: weight of the continuation question's loss, where the rows ask it.
        context: how much of its document a dev example is read with; each is read alone if None.
        **kwargs: callbacks, optimizers and the like, as for `Trainer`.

    Raises:
        ValueError: arguments that do not fit packed rows, or several GPUs in one process.
    """

    control: TrainerControl

    def __init__(
        self,
        model: DecodNERForSpanClassification,
        args: TrainingArguments,
        rows: PackedRows | None,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dev: Sequence[Example] = (),
        dev_labels: Sequence[str] | None = None,
        none_weight: float = 1.0,
        loss_divisor: float = 4.0,
        continuation_weight: float = 0.1,
        context: Context | None = None,
        **kwargs: Any,
    ) -> None:
        """See the class."""
        wrong = {name: getattr(args, name) for name, value in FIXED_ARGUMENTS.items() if getattr(args, name) != value}
        if wrong or args.n_gpu > 1:
            raise ValueError(
                f"packed rows need {FIXED_ARGUMENTS} and one GPU per process (accelerate launch), not "
                f"{wrong or f'{args.n_gpu} GPUs in this one'}: a step is row_tokens x accumulation x processes."
            )
        check_number("none_weight", none_weight, 0.0)
        check_number("continuation_weight", continuation_weight, 0.0)
        if loss_divisor <= 0:
            raise ValueError(f"loss_divisor must be above 0, not {loss_divisor!r}.")
        self.dev, self.dev_labels, self.context = list(dev), dev_labels, context
        self.none_weight, self.loss_divisor = none_weight, loss_divisor
        self.continuation_weight = continuation_weight
        self._waited, self._began = 0.0, 0.0
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            eval_dataset=list(dev) or None,
            processing_class=tokenizer,
            data_collator=collate_row,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True  # the loss is normalised over the whole accumulated batch

    # ------------------------------------------------------------------ the step

    def _get_train_sampler(self, train_dataset: PackedRows | None = None) -> Sampler[int]:
        """Takes rows in their order, which is shuffled already."""
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | None]:
        """Returns the rows of an optimizer step and their number of gold spans over all ranks; times the wait."""
        asked = time.monotonic()
        self._began = self._began or asked
        rows, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._waited += time.monotonic() - asked
        if not rows:
            return rows, None
        gold = torch.stack([(row["labels"] > 0).sum() for row in rows]).sum().to(device)
        if self.args.world_size > 1:
            gold = self.accelerator.gather(gold).sum()
        return rows, gold.clamp(min=1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, SpanClassifierOutput]:
        """Returns the loss of a row, normalised by gold spans: of its labels, and of the continuation question."""
        arrays = {name: torch.from_numpy(inputs[name]) for name in HOST_ARRAYS}
        given = {name: value for name, value in inputs.items() if name not in TARGETS}
        outputs: SpanClassifierOutput = model(**(given | arrays))
        assert outputs.logits is not None
        labels = inputs["labels"].reshape(-1)
        every, continues = outputs.logits.flatten(0, -2), inputs.get("span_continues")
        logits = every
        if continues is not None:  # the last two columns answer the continuation question
            logits = logits[:, :-2]
        loss = span_loss(logits, labels, num_items_in_batch, none_weight=self.none_weight)
        if continues is not None:
            num_gold = (labels > 0).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            question = continuation_loss(every[:, -2:], continues.reshape(-1), num_gold)
            loss = loss + self.continuation_weight * question
        # ranks average their gradients, the sum is meant
        loss = loss / self.loss_divisor * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    @property
    def wait_share(self) -> float:
        """Part of the time since the first step that the loop waited for rows, from 0 to 1."""
        return self._waited / max(time.monotonic() - self._began, 1e-9) if self._began else 0.0

    def log(self, logs: dict[str, float], *args: object, **kwargs: object) -> None:
        """Adds the share of time spent waiting for rows."""
        if "loss" in logs or "train_loss" in logs:
            logs["wait_share"] = round(self.wait_share, 4)
        super().log(logs, *args, **kwargs)

    # ------------------------------------------------------------------ evaluation

    def evaluate(
        self,
        eval_dataset: Sequence[Example] | None = None,
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measures exact-span precision, recall and F1 of the pipeline, with the model's own settings.

        Every rank takes its share of the examples.

        Raises:
            UnscoredError: an example that cannot be scored, or no memory for it.
            ValueError: no examples.
        """
        examples = self.dev if eval_dataset is None else list(eval_dataset)
        if not examples:
            raise ValueError("there are no dev examples: pass dev=... to the trainer, or examples to evaluate.")
        rank, ranks = self.args.process_index, self.args.world_size
        share = examples[len(examples) * rank // ranks : len(examples) * (rank + 1) // ranks]
        counts, failure = [0, 0, 0], None
        try:
            counts = self._span_counts(share)
        except (ValueError, torch.OutOfMemoryError) as error:  # the other ranks wait for this one's counts
            failure = error
        told = torch.tensor([*counts, int(failure is not None)], device=self.args.device)
        *counts, failures = self.accelerator.reduce(told, "sum").tolist()
        if failures:
            reason = failure or f"{failures} other process(es) met some that they could not score"
            raise UnscoredError(f"the dev examples: {reason}") from failure
        scores = dict(zip(("precision", "recall", "f1"), precision_recall_f1(*counts).tolist(), strict=True))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _span_counts(self, examples: Sequence[Example]) -> list[int]:
        """Counts correct, predicted and gold spans."""
        if not examples:
            return [0, 0, 0]
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        pipe = DecodNERPipeline(model=model, tokenizer=self.processing_class, device=model.device, task=TASK)
        choices = {} if self.dev_labels is None else {"candidate_labels": list(self.dev_labels)}
        figures = evaluate_spans(pipe, examples, context=self.context, **choices)
        model.train(was_training)
        return [int(figures[name]) for name in ("correct", "predicted", "gold")]

    # ------------------------------------------------------------------ checkpoints

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: DecodNERForSpanClassification | None = None
    ) -> None:
        load_weights(self.model if model is None else model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is None:
            raise ValueError("no best checkpoint is known: evaluate at least once before the end.")
        load_weights(self.model, self.state.best_model_checkpoint)


def load_weights(model: DecodNERForSpanClassification, directory: str) -> None:
    """Loads a checkpoint's weights into `model`: those of adapters, or all by the decoder's own class.

    Raises:
        ValueError: weights that the checkpoint misses, has too many of, or has in other shapes.
    """
    backbone = model.backbone
    if (Path(directory) / ADAPTER_WEIGHTS).is_file():
        _load_adapter_weights(backbone, Path(directory) / ADAPTER_WEIGHTS)
        return
    loaded, info = native_class(backbone.config).from_pretrained(
        directory,
        config=backbone.config,
        dtype=backbone.dtype,
        attn_implementation=ATTENTION_NAME,
        output_loading_info=True,
    )
    wrong = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise ValueError(f"{directory} does not hold this model's weights: {wrong}.")
    backbone.load_state_dict(loaded.state_dict(), strict=True)


def _load_adapter_weights(backbone: PreTrainedModel, path: Path) -> None:
    from peft import set_peft_model_state_dict

    (name,) = active_adapters(backbone)
    weights = {key.removeprefix(PEFT_PREFIX): value for key, value in load_file(path).items()}
    result: _IncompatibleKeys = set_peft_model_state_dict(backbone, weights, adapter_name=name)
    missing = [key for key in result.missing_keys if f".{name}." in key]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"{path} does not hold this adapter's weights: missing {missing[:5]}, unexpected "
            f"{result.unexpected_keys[:5]}."
        )
