"""Pretrains a small Llama from scratch on plain text: tokenizer, tokens, training, a folder for `from_pretrained`.

In: JSON Lines files with a text each line, plain or .xz. Out: a folder with weights in shards and the tokenizer.
A run that was stopped, by --max-seconds or otherwise, goes on from its last saved state when the same command is given
again, and ends with the weights that it would have had. Several GPUs: `accelerate launch
scripts/default_model/pretrain.py ...`.

python scripts/default_model/pretrain.py --text data/*.jsonl.xz --output backbone --tokens 300_000_000
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from pretrain_data import (
    Corpus,
    RowOrder,
    check_same,
    cut_rows,
    described,
    prepare_tokenizer,
    tokenize_corpus,
    tokenizer_in,
)
from pretrain_options import Schedule, parse
from torch import nn
from transformers import AttentionInterface, AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from decodner_hf.training.optimizers import MuonWithAdamW

OK, FAILED, UNFINISHED = 0, 1, 3
ATTENTION = "causal_rows"
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
SHAPE = ("vocabulary", "hidden", "layers", "heads", "mlp", "row_tokens", "max_positions")


def causal_rows(
    module: nn.Module,  # noqa: ARG001
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    scaling: float | None = None,
    **kwargs: Any,  # noqa: ARG001
) -> tuple[torch.Tensor, None]:
    """Causal attention of full rows; no mask is ever built, so that the flash kernel is always used.

    The arguments are those that transformers gives: query, key, value [B, H, T, D]; returns ([B, T, H, D], None).
    """
    grouped = query.shape[1] != key.shape[1]
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, causal_rows)


class RowLoss(nn.Module):
    """The mean next-token loss of rows; all that is compiled."""

    def __init__(self, model: LlamaForCausalLM, half: bool) -> None:
        """Computes in bfloat16, with weights in float32, if `half`."""
        super().__init__()
        self.model, self.half = model, half

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """int64 [B, T + 1] -> scalar."""
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=self.half):
            states = self.model.model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state
            logits = self.model.lm_head(states)
        return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 when all tokens are trained on, 3 when --max-seconds stopped it, else 1."""
    started = time.monotonic()
    options = parse(argv, __doc__ or "")
    try:
        return pretrain(options, started)
    except (ValueError, OSError) as error:
        print(f"pretrain: error: {error}", file=sys.stderr)
        return FAILED


def pretrain(options: argparse.Namespace, started: float) -> int:
    """Trains, or goes on, and saves; returns 0 when all tokens are trained on, 3 when the time was up.

    Raises:
        ValueError: text, sizes and a saved state that do not fit together.
        OSError: files that cannot be read.
    """
    accelerator = Accelerator()
    say: Callable[[str], None] = lambda text: accelerator.print(text, flush=True)  # noqa: E731
    schedule = Schedule.of(options)
    with accelerator.main_process_first():
        tokenizer = tokenizer_of(options, say)
        corpus = tokenize_corpus(options.text, options.text_field, tokenizer.backend_tokenizer, options.work)
    say(f"{len(corpus.token_ids):,} tokens in {len(corpus.cu_seqlens) - 1:,} documents, {seconds(started)}")
    trainer = Pretrainer(options, schedule, corpus, tokenizer, accelerator)
    if trainer.resume():
        say(f"going on at step {trainer.step} of {schedule.steps}")
    finished = trainer.run(started, say)
    trainer.save_state()
    if not finished:
        say(f"stopped at step {trainer.step} of {schedule.steps}: the same command goes on.")
        return UNFINISHED
    loss = trainer.validate()
    trainer.save_model(loss)
    say(json.dumps({"steps": trainer.step, "parameters": trainer.num_parameters, "valid_loss": loss}))
    return OK


class Pretrainer:
    """The training loop and what it saves."""

    def __init__(
        self,
        options: argparse.Namespace,
        schedule: Schedule,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerFast,
        accelerator: Accelerator,
    ) -> None:
        """Makes the model (seeded) and its optimizer on the accelerator's device."""
        self.options, self.schedule, self.tokenizer, self.accelerator = options, schedule, tokenizer, accelerator
        device = accelerator.device
        torch.manual_seed(options.seed)
        torch.set_float32_matmul_precision("high")
        self.model = make_model(options, tokenizer).to(device)
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.optimizer = make_optimizer(options.optimizer, self.model, schedule.rate, device)
        loss = RowLoss(self.model, half=options.dtype == "bfloat16")
        compiled = torch.compile(loss, dynamic=False) if options.compile else loss
        self.loss = accelerator.prepare_model(compiled) if accelerator.num_processes > 1 else compiled
        train, valid = corpus.split(options.valid_documents, options.seed)
        self.order = RowOrder(corpus, train, options.row_tokens, options.seed)
        held = "held-out documents"
        self.valid = cut_rows(corpus.stream(valid), options.row_tokens, held) if len(valid) else None
        self.step = 0
        self.state_path = options.work / "state.pt"
        if schedule.rows % (accelerator.num_processes * options.micro_rows):
            raise ValueError(
                f"a step has {schedule.rows} rows, which {accelerator.num_processes} processes cannot take "
                f"{options.micro_rows} at a time: choose another --micro-rows or --batch-tokens."
            )

    def run(self, started: float, say: Callable[[str], None]) -> bool:
        """Trains up to the last step; False where the time ran out before."""
        options, schedule = self.options, self.schedule
        logged, since = torch.zeros((), device=self.accelerator.device), self.step
        clock = saved = time.monotonic()
        while self.step < schedule.steps:
            logged += self._one_step()
            self.step += 1
            if self.step % options.log_steps == 0 or self.step == schedule.steps:
                loss = self.accelerator.reduce(logged, "mean").item() / (self.step - since)
                now = time.monotonic()
                speed = (self.step - since) * options.batch_tokens / (now - clock)
                say(
                    f"step {self.step}/{schedule.steps} loss {loss:.4f} lr {schedule.rate_at(self.step - 1):.2e} "
                    f"{speed:,.0f} tokens/s {seconds(started)}"
                )
                logged.zero_()
                since, clock = self.step, now
                if self._is_time(started, options.max_seconds):
                    return self.step == schedule.steps
                if self._is_time(saved, options.save_seconds or None):
                    self.save_state()
                    clock = saved = time.monotonic()
        return True

    def _is_time(self, since: float, limit: float | None) -> bool:
        """Tells whether `limit` seconds have passed on any rank: what follows is done by all, at the same step."""
        if limit is None:
            return False
        late = torch.tensor([float(time.monotonic() - since > limit)])
        return bool(self.accelerator.reduce(late.to(self.accelerator.device), "sum").item())

    def _one_step(self) -> torch.Tensor:
        """One optimizer step; returns this rank's mean loss, still on the device."""
        ranks, micro = self.accelerator.num_processes, self.options.micro_rows
        device = self.accelerator.device
        own = self.schedule.rows // ranks
        first = self.step * self.schedule.rows + self.accelerator.process_index * own
        rows = torch.from_numpy(self.order.take(first, own))
        rows = rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows.to(device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate_at(self.step)
        total = torch.zeros((), device=device)
        pieces = rows.split(micro)
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            with self.accelerator.no_sync(self.loss) if ranks > 1 and not last else nullcontext():
                loss = self.loss(piece) / len(pieces)
                loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    @torch.no_grad()
    def validate(self) -> float | None:
        """Mean loss of the held-out documents, to four digits; None where none are held out."""
        if self.valid is None:
            return None
        loss = RowLoss(self.model, half=self.options.dtype == "bfloat16")
        rows = torch.from_numpy(self.valid.astype("int64")).split(self.options.micro_rows)
        sums = [float(loss(piece.to(self.accelerator.device))) * len(piece) for piece in rows]
        return round(sum(sums) / len(self.valid), 4)

    # ------------------------------------------------------------------ what is saved

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a saved state to be gone on from."""
        names = (*SHAPE, "tokens", "batch_tokens", "optimizer", "learning_rate", "warmup", "seed", "valid_documents")
        init = None if self.options.init is None else str(self.options.init)
        text = {"text": described(self.options.text), "text_field": self.options.text_field}
        return {name: getattr(self.options, name) for name in names} | text | {"init": init}

    def save_state(self) -> None:
        """Writes weights, optimizer and step, so that the same command goes on from here."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
            part = self.state_path.with_suffix(".part")
            torch.save(state | {"identity": self._identity()}, part)
            part.replace(self.state_path)
        self.accelerator.wait_for_everyone()

    def resume(self) -> bool:
        """Loads the saved state if there is one; a ValueError if it belongs to another run."""
        if not self.state_path.exists():
            return False
        state = torch.load(self.state_path, map_location=self.accelerator.device, weights_only=True)
        check_same(self.state_path, state["identity"], self._identity())
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return True

    def save_model(self, valid_loss: float | None) -> None:
        """Writes the finished model, its tokenizer and how it was made."""
        if not self.accelerator.is_main_process:
            return
        directory = self.options.output
        self.model.to(getattr(torch, self.options.save_dtype))
        self.model.save_pretrained(directory, max_shard_size=self.options.max_shard_size)
        self.tokenizer.save_pretrained(directory)
        config = self.model.config  # that of --init, whatever shape the options name
        record = self._identity() | {
            "vocabulary": config.vocab_size,
            "hidden": config.hidden_size,
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "mlp": config.intermediate_size,
            "max_positions": config.max_position_embeddings,
            "parameters": self.num_parameters,
            "valid_loss": valid_loss,
        }
        (directory / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def make_model(options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Returns a random Llama by the options, or the one at --init."""
    if options.init is not None:
        of = AutoConfig.from_pretrained(options.init).get_text_config()
        if of.model_type != LlamaConfig.model_type or of.vocab_size < len(tokenizer):
            raise ValueError(
                f"--init {options.init} is a {of.model_type} model of {of.vocab_size:,} tokens, with a tokenizer of "
                f"{len(tokenizer):,}: the start must be a Llama, and know all tokens."
            )
        return LlamaForCausalLM.from_pretrained(options.init, dtype=torch.float32, attn_implementation=ATTENTION)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        intermediate_size=options.mlp,
        max_position_embeddings=options.max_positions or options.row_tokens,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)


def make_optimizer(name: str, model: nn.Module, rate: float, device: torch.device) -> torch.optim.Optimizer:
    """Muon or AdamW; only matrices decay."""
    if name == "muon":
        return MuonWithAdamW(model, rate, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=device.type == "cuda")
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=device.type == "cuda")


def tokenizer_of(options: argparse.Namespace, say: Callable[[str], None]) -> PreTrainedTokenizerFast:
    """Returns the tokenizer at --init, or that of an earlier run, or one trained now."""
    if options.init is not None:
        return tokenizer_in(options.init)
    start = time.monotonic()
    made_from = (options.text, options.text_field, options.vocabulary, options.tokenizer_characters)
    tokenizer, new = prepare_tokenizer(*made_from, options.work / "tokenizer")
    if new:
        say(f"trained a tokenizer of {len(tokenizer):,} tokens, {seconds(start)}")
    return tokenizer


def seconds(since: float) -> str:
    """Time since then, for people."""
    return f"{time.monotonic() - since:.0f} s"


if __name__ == "__main__":
    raise SystemExit(main())
