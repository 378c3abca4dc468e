"""The original low-level API: padded span batches over a cached prefix, and what turns text into their tensors.

In: token ids of a prefix and of right-padded spans; or span and label strings and a fast tokenizer. Out: next-token
logits of every position, and of them the labels' logits at each span's last token.
It runs on the same engine as the pipeline; the pipeline does not use it.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .cache import DualBufferCache
from .compatibility import TokenIds, check_token_ids, input_device, packed_arguments
from .compilation import without_gradients
from .forest import rows_forest
from .modeling import DecodNERForSpanClassification
from .packed_pass import pass_metadata
from .tokenization import check_texts, continuation_ids
from .transfers import copy_to_device
from .validation import is_count


class UniversalDecoder(DecodNERForSpanClassification):
    """`DecodNERForSpanClassification` with the original design's methods for padded span batches."""

    @classmethod
    def from_hub(cls, model_id: str | PathLike[str], **kwargs: Any) -> Any:
        """`from_pretrained` under the original design's name."""
        return cls.from_pretrained(model_id, **kwargs)

    def prefill_prefix(self, prefix_ids: TokenIds, cache: DualBufferCache) -> DualBufferCache:
        """Replaces what `cache` holds by the prefix `prefix_ids`, int64 [P] or [1, P]; see `encode_prefix`."""
        check_token_ids(torch.as_tensor(prefix_ids), self.vocabulary_size)
        cache.reset()
        return self.encode_prefix(prefix_ids, cache)

    @without_gradients
    def forward_spans(
        self, span_ids: torch.Tensor, position_ids: torch.Tensor | None, cache: DualBufferCache
    ) -> torch.Tensor:
        """Computes the next-token logits of a padded span batch after the cached prefix; call it per mini-batch.

        Args:
            span_ids: int64 [batch, span_len], right-padded.
            position_ids: int64 [batch, span_len], prefix length + 0 .. span_len - 1 in each row; None for just that.
            cache: from `prefill_prefix`; read, not written.

        Returns:
            [batch, span_len, vocabulary].

        Raises:
            ValueError: an empty batch, shapes or positions that do not fit, or spans longer than cache or model allow.
        """
        if span_ids.dim() != 2 or 0 in span_ids.shape:
            raise ValueError(f"span_ids must be [batch, span_len] with at least one span, not {list(span_ids.shape)}.")
        batch, length = span_ids.shape
        if cache.max_suffix_len is not None and length > cache.max_suffix_len:
            raise ValueError(
                f"the spans have {length} tokens, but this cache was made with max_suffix_len={cache.max_suffix_len}."
            )
        if cache.max_rows is not None and batch > cache.max_rows:
            raise ValueError(f"{batch} spans were given, but this cache was made with batch_size={cache.max_rows}.")
        token_ids = check_token_ids(span_ids.reshape(-1), self.vocabulary_size)
        forest = rows_forest(span_ids.cpu(), cache.prefix_length)
        if position_ids is not None and not torch.equal(position_ids.cpu().reshape(-1), forest.position_ids):
            raise ValueError(
                f"position_ids must be the prefix length plus 0 .. span_len - 1 in each row, here "
                f"{cache.prefix_length} .. {cache.prefix_length + length - 1}; leave them out to have them made."
            )
        metadata = pass_metadata(self, forest.position_ids, forest.subtree_end, cache)
        token_ids, positions = copy_to_device([token_ids, metadata.position_ids], input_device(self.backbone))
        arguments = packed_arguments(positions[None], metadata)
        logits: torch.Tensor = self.backbone(input_ids=token_ids[None], **arguments).logits  # [1, batch * span_len, V]
        return logits.reshape(batch, length, -1)

    def score_spans(
        self, prefix_ids: TokenIds, span_ids: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Runs `prefill_prefix` and `forward_spans` in one call: logits [batch, span_len, vocabulary]."""
        return self.forward_spans(span_ids, position_ids, self.prefill_prefix(prefix_ids, DualBufferCache()))


def tokenize_spans(
    spans: str | Sequence[str], tokenizer: PreTrainedTokenizerBase, prefix_len: int, *, leading_space: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokenizes spans into a right-padded batch that follows a shared prefix.

    A span brings the space before it, as the pipeline reads it: most tokenizers have one token for a space and the
    word after it, so the prompt has to end without one ("...Span:"). The original design's prompt ends with a space
    ("...Span: "): pass `leading_space=False` for such a prompt, or every span would follow two spaces.

    Args:
        spans: one span or B of them.
        tokenizer: a fast tokenizer; without a pad token the padding is its end token, or 0.
        prefix_len: number of tokens before the spans.
        leading_space: whether a span is tokenized with a space before it; False tokenizes it as it stands right after
            the prompt's last character.

    Returns:
        span_ids, position_ids and attention_mask, each int64 [B, L]. Every row's positions are
        prefix_len .. prefix_len + L - 1; the mask is 1 at a span's own tokens.

    Raises:
        ValueError: no span, a blank span, one that is not a string, or a negative prefix_len.
    """
    rows = [spans] if isinstance(spans, str) else spans
    check_texts(rows, "spans")
    if not rows:
        raise ValueError("no spans were given: pass at least one.")
    if not is_count(prefix_len, least=0):
        raise ValueError(f"prefix_len must be a number of tokens, 0 or more, not {prefix_len!r}.")
    blank = [index for index, span in enumerate(rows) if not span.strip()]
    token_ids = continuation_ids(tokenizer, [f" {span}" if leading_space else span for span in rows])
    empty = blank or [index for index, ids in enumerate(token_ids) if not len(ids)]
    if empty:
        raise ValueError(f"span {empty[0]} ({rows[empty[0]]!r}) is empty: every span needs at least one token.")
    padding = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(i, int)), 0)
    lengths = torch.tensor([len(ids) for ids in token_ids])
    positions = torch.arange(int(lengths.max()))  # [L]
    mask = positions < lengths[:, None]  # [B, L]
    span_ids = torch.full(mask.shape, padding)
    span_ids[mask] = torch.from_numpy(np.concatenate(token_ids))
    return span_ids, (positions + prefix_len).repeat(len(rows), 1), mask.to(torch.int64)


def get_label_token_ids(labels: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token id of each label, as it stands in the middle of a prompt.

    Raises:
        ValueError: naming each label that is not exactly one token, with its tokens, and labels that share a token.
    """
    check_texts(labels, "labels")
    if not labels:
        raise ValueError("no labels were given: pass at least one.")
    tokens = [ids.tolist() for ids in continuation_ids(tokenizer, labels)]
    faults = [
        f"{label!r} is {len(ids)} tokens {tokenizer.convert_ids_to_tokens(ids)}"
        for label, ids in zip(labels, tokens, strict=True)
        if len(ids) != 1
    ]
    sharing: dict[int, list[str]] = {}
    for label, ids in zip(labels, tokens, strict=True):
        if len(ids) == 1:
            sharing.setdefault(ids[0], []).append(label)
    faults += [f"{names} share the token {token}" for token, names in sharing.items() if len(names) > 1]
    if faults:
        raise ValueError(f"each label must be one token of its own: {'; '.join(faults)}. Use digits or letters.")
    return [ids[0] for ids in tokens]


def get_entity_scores(
    logits: torch.Tensor, label_token_ids: Sequence[int] | torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Returns the labels' logits [batch, num_labels] at each span's last real token.

    Args:
        logits: [batch, span_len, vocab], as from `score_spans` or `forward_spans`.
        label_token_ids: num_labels token ids, from 0 to vocab - 1.
        attention_mask: [batch, span_len], 1 for real tokens and 0 for padding on the right.

    Raises:
        ValueError: shapes that do not fit, a row without a real token, padding before a real token, mask values
            other than 0 and 1, or ids that are missing, repeated or outside the vocabulary.
    """
    if logits.ndim != 3 or attention_mask.shape != logits.shape[:2]:
        raise ValueError(
            "logits must be [batch, span_len, vocab] and attention_mask [batch, span_len], "
            f"not {list(logits.shape)} and {list(attention_mask.shape)}."
        )
    mask = attention_mask.to(logits.device)
    real = mask != 0
    if not bool((real == mask).all()):
        raise ValueError("attention_mask must hold 1 for real tokens and 0 for padding, nothing else.")
    empty = ~real.any(1)
    if bool(empty.any()):
        raise ValueError(f"row {int(empty.nonzero()[0])} of attention_mask has no real token: drop empty spans.")
    holes = (real[:, 1:] & ~real[:, :-1]).any(1)
    if bool(holes.any()):
        raise ValueError(
            f"row {int(holes.nonzero()[0])} of attention_mask has padding before a real token: pad spans on the right."
        )
    columns = _checked_token_ids(label_token_ids, logits.shape[2]).to(logits.device)
    rows = torch.arange(logits.shape[0], device=logits.device)  # [batch]
    return logits[rows, real.sum(1) - 1].index_select(1, columns)  # [batch, vocab] -> [batch, num_labels]


def _checked_token_ids(label_token_ids: Sequence[int] | torch.Tensor, vocab: int) -> torch.Tensor:
    """Returns the ids as int64 [num_labels]."""
    ids = torch.as_tensor(label_token_ids)
    if ids.ndim != 1 or not ids.numel() or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"label_token_ids must be a list with one token id a label, not {label_token_ids!r}.")
    outside = ids[(ids < 0) | (ids >= vocab)].tolist()
    if outside:
        raise ValueError(f"label_token_ids {outside} lie outside the vocabulary of {vocab} tokens.")
    if len(set(ids.tolist())) < len(ids):
        raise ValueError(f"label_token_ids {ids.tolist()} name a token twice: every label needs its own.")
    return ids.to(torch.int64)
