"""Whether what a packed pass is given fits together and fits the model, as methods that the model class inherits.

In: a pass's plan; token ids. Out: nothing, or a ValueError that says what was given and what is allowed.
Knows nothing of labels or text.
"""

from typing import Any

import numpy as np
import torch

from .attention_metadata import AttentionMetadata


class InputChecks:
    """Checks against the model's limits; the host class holds them."""

    node_limit: int | None
    position_limit: Any
    get_input_embeddings: Any

    def _check_structure(self, plan: AttentionMetadata) -> None:
        positions, ends = plan.position_ids.long().numpy(), plan.subtree_end.long().numpy()
        if positions.shape != ends.shape or not positions.size:
            raise ValueError(f"{positions.size} position ids for {ends.size} nodes: one each, and at least one.")
        nodes = np.arange(ends.size)
        if (ends < nodes).any() or ends.max() >= ends.size:
            raise ValueError("subtree_end must lie between the node itself and the last node, inclusive.")
        closed = np.cumsum(np.bincount(ends + 1, minlength=ends.size)[: ends.size])  # subtrees ended
        if not np.array_equal(positions, plan.prefix_length + nodes - closed):
            raise ValueError(
                f"position ids run from {int(positions.min())} to {int(positions.max())}, but the prefix has "
                f"{plan.prefix_length} tokens: a node's position is the prefix length plus its depth in the forest."
            )
        if self.node_limit is not None and ends.size > self.node_limit:
            raise ValueError(
                f"{ends.size} nodes were given, but this model scales its queries by their place in the row from "
                f"{self.node_limit} on: score at most {self.node_limit} nodes a pass."
            )
        limit, last = self.position_limit, int(positions.max())
        if limit is not None and last >= limit.limit:
            raise ValueError(
                f"prefix and spans reach position {last}, but only positions below {limit.limit} can be used: "
                f"{limit.reason}. Shorten the text or score it in windows."
            )

    def _checked_ids(self, token_ids: torch.Tensor, what: str = "token ids") -> torch.Tensor:
        """Returns `token_ids` as they are; a ValueError if one is not in the vocabulary."""
        if not token_ids.numel() or token_ids.is_floating_point():
            raise ValueError(
                f"{what} must be integers, at least one, not {token_ids.dtype} of {list(token_ids.shape)}."
            )
        vocabulary = self.get_input_embeddings().weight.shape[0]
        lowest, highest = map(int, token_ids.aminmax())
        if lowest < 0 or highest >= vocabulary:
            raise ValueError(f"{what} run from {lowest} to {highest}, but the vocabulary is 0 .. {vocabulary - 1}.")
        return token_ids
