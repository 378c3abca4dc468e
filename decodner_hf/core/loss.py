"""What is learnt from label logits: the loss of a pass, by the model itself or by the package's trainer.

In: label logits and the gold column of each span. Out: a number.
Knows nothing of forests, types or text.
"""

import torch
import torch.nn.functional as F

UNLABELLED = -100  # the gold column of a span that carries no loss


def span_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_gold: torch.Tensor | int | None = None,
    *,
    none_weight: float = 1.0,
) -> torch.Tensor:
    """Cross-entropy, summed over spans and divided by the number of gold spans: None spans outnumber them by far.

    Args:
        logits: [S, L], label logits, those of the none label first.
        labels: int64 [S], each span's gold column; 0 is None, -100 is left out.
        num_gold: what the sum is divided by; the number of labels above 0, at least 1, if None.
        none_weight: weight of the spans whose label is 0.

    Returns:
        A scalar, in float32.
    """
    weights = torch.ones(logits.shape[1], device=logits.device)
    weights[0] = none_weight
    summed = F.cross_entropy(logits.float(), labels, weight=weights, ignore_index=UNLABELLED, reduction="sum")
    return summed / ((labels > 0).sum().clamp(min=1) if num_gold is None else num_gold)
