"""Baselines without a forest: right-padded rows, and a decoder's own cache of the prefix.

In: a document's `SpanPaths`; a plain decoder and a prefix. Out: batches of rows and where spans end in them; caches.
Knows nothing of labels or clocks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from decodner_hf import SpanPaths
from decodner_hf.core.transformers_private import cache_keyword


@dataclass(frozen=True)
class Rows:
    """Right-padded rows of tokens and where their spans end.

    Attributes:
        token_ids: int64 [R, L].
        lengths: int64 [R], tokens a row; rows are sorted by it.
        end_row: int64 [S], each span's row.
        end_column: int64 [S], column of each span's last token.
        spans: int64 [S], each span's number in the document.
    """

    token_ids: torch.Tensor
    lengths: torch.Tensor
    end_row: torch.Tensor
    end_column: torch.Tensor
    spans: torch.Tensor

    @classmethod
    def of(cls, paths: SpanPaths, one_row_a_span: bool) -> "Rows":
        """Rows of the document's paths (one a word start), or of its spans."""
        starts = paths.cu_seqlens[:-1][paths.span_path] if one_row_a_span else paths.cu_seqlens[:-1]
        lengths = paths.span_length if one_row_a_span else np.diff(paths.cu_seqlens)
        order = np.argsort(lengths, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        starts, lengths = starts[order], lengths[order]
        columns = np.arange(lengths.max())
        inside = columns < lengths[:, None]
        table = np.where(inside, paths.token_ids[np.where(inside, starts[:, None] + columns, 0)], 0)
        row = rank[np.arange(len(order))] if one_row_a_span else rank[paths.span_path]
        arrays = (table, lengths, row, paths.span_length - 1, np.arange(len(row)))
        return cls(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def batches(self, size: int, most: int | None, trim: bool = True) -> list["Rows"]:
        """Batches of up to `size` rows, at most `most` of them spread evenly; trimmed to their longest row."""
        starts = list(range(0, len(self.lengths), size))
        if most is not None and len(starts) > most:
            starts = [starts[index] for index in np.linspace(0, len(starts) - 1, most + 2)[1:-1].astype(int)]
        batches = []
        for start in starts:
            chosen = (self.end_row >= start) & (self.end_row < start + size)
            lengths = self.lengths[start : start + size]
            width = int(lengths.max()) if trim else self.token_ids.shape[1]
            table = self.token_ids[start : start + size, :width].contiguous()
            ends = (self.end_row[chosen] - start, self.end_column[chosen], self.spans[chosen])
            batches.append(Rows(table, lengths, *ends))
        return batches


@dataclass(frozen=True)
class Prefilled:
    """A plain decoder and what its own cache holds of the prefix: per layer keys and values [1, Hkv, P, D]."""

    native: PreTrainedModel
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, native: PreTrainedModel, prefix: torch.Tensor) -> "Prefilled":
        """Runs the prefix [P] once."""
        filled = DynamicCache(config=native.config)
        keywords = {cache_keyword(native): filled, "logits_to_keep": 1}
        native(input_ids=prefix[None].to(native.device), **keywords)
        return cls(native, [(layer.keys, layer.values) for layer in filled.layers])

    def cache(self, rows: int) -> DynamicCache:
        """Returns the prefix repeated for a batch."""
        cache = DynamicCache(config=self.native.config)
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
        return cache
