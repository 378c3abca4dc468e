"""The original low-level API: padded span batches over a cached prefix, as methods that the model class inherits.

In: token ids of a prefix and of spans, right-padded. Out: next-token logits of every position.
Knows nothing of labels or text.
"""

from collections.abc import Callable
from typing import Any

import torch

from .cache import DualBufferCache
from .compatibility import input_device, packed_arguments
from .compilation import without_gradients
from .forest import rows_forest
from .transfers import copy_to_device


class PaddedSpanMethods:
    """Prefix and padded spans; the host class provides `encode_prefix` and the checks."""

    backbone: Any
    encode_prefix: Callable[..., DualBufferCache]
    _checked_ids: Any
    _plan: Any

    def prefill_prefix(self, prefix_ids: Any, cache: DualBufferCache) -> DualBufferCache:
        """Replaces what `cache` holds by the prefix `prefix_ids` [P] or [1, P]; see `encode_prefix`."""
        self._checked_ids(torch.as_tensor(prefix_ids))
        cache.reset()
        return self.encode_prefix(prefix_ids, cache)

    @without_gradients
    def forward_spans(
        self, span_ids: torch.Tensor, position_ids: torch.Tensor | None, cache: DualBufferCache
    ) -> torch.Tensor:
        """Next-token logits of a padded span batch behind the cached prefix; call it for each mini-batch.

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
        token_ids = self._checked_ids(span_ids.reshape(-1))
        forest = rows_forest(span_ids.cpu(), cache.prefix_length)
        if position_ids is not None and not torch.equal(position_ids.cpu().reshape(-1), forest.position_ids):
            raise ValueError(
                f"position_ids must be the prefix length plus 0 .. span_len - 1 in each row, here "
                f"{cache.prefix_length} .. {cache.prefix_length + length - 1}; leave them out to have them made."
            )
        plan = self._plan(forest.position_ids, forest.subtree_end, cache)
        token_ids, positions = copy_to_device([token_ids, plan.position_ids], input_device(self.backbone))
        arguments = packed_arguments(positions[None], plan)
        logits: torch.Tensor = self.backbone(input_ids=token_ids[None], **arguments).logits
        return logits.reshape(batch, length, -1)

    def score_spans(
        self, prefix_ids: Any, span_ids: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`prefill_prefix` and `forward_spans` in one call: logits [batch, span_len, vocabulary]."""
        return self.forward_spans(span_ids, position_ids, self.prefill_prefix(prefix_ids, DualBufferCache()))
