"""Muon for the matrices of the hidden layers with AdamW for all other weights, as one optimizer.

In: a model. Out: a `torch.optim.Optimizer` that schedulers, accelerate and the Trainer can treat as one.
Knows nothing of what is trained.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). The scale that lets one learning rate
serve both ("match_rms_adamw") is that of Liu et al., "Muon is scalable for LLM training" (arXiv:2502.16982).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps two-dimensional weights by `torch.optim.Muon`, the other ones by `torch.optim.AdamW`.

    Embeddings and the head are stepped by AdamW too. The groups of both are this optimizer's `param_groups`.

    Args:
        model: its weights are stepped, unless they take no gradient.
        lr: learning rate of all groups.
        momentum: of Muon.
        betas: of AdamW.
        weight_decay: of matrices and embeddings; vectors do not decay.
        fused: AdamW's fused kernel, for weights on a GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        fused: bool = False,
    ) -> None:
        """See the class."""
        lookups = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        lookups |= {id(weight) for module in model.modules() for weight in _head_weights(module)}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices = [p for p in trained if p.dim() == 2 and id(p) not in lookups]
        decaying = [p for p in trained if p.dim() > 1 and (p.dim() != 2 or id(p) in lookups)]
        vectors = [p for p in trained if p.dim() <= 1]
        adamw_groups = [
            {"params": decaying, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        adamw_groups = [group for group in adamw_groups if group["params"]]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(
                torch.optim.Muon(
                    matrices, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
                )
            )
        if adamw_groups:
            self.parts.append(torch.optim.AdamW(adamw_groups, lr=lr, betas=betas, fused=fused))
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step with all weights."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of both optimizers."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]  # loading made new ones


def _head_weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yields the weights of a language model's head, whatever it is called; none of other modules."""
    head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    if head is not None:
        yield from head.parameters()
