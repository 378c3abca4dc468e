"""The Muon optimizer: orthogonalised momentum for the matrices of the hidden layers, AdamW for all else.

In: a model. Out: a `torch.optim.Optimizer` with one learning rate for both kinds of weights. Matrices of one shape are
orthogonalised together, so that a step takes a few batched products instead of a few for every layer.
Knows nothing of what is trained.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the scale that makes one learning rate
serve both kinds is that of Liu et al., "Muon is scalable for LLM training" (arXiv:2502.16982).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as published
ITERATIONS = 5
UPDATE_RMS = 0.2  # of a matrix's update, as AdamW's usually is


class Muon(torch.optim.AdamW):
    """AdamW, in which the groups marked `orthogonal` take orthogonalised Nesterov momentum instead.

    Args:
        model: its two-dimensional weights are marked, except embeddings and the head, unless they take no gradient.
        lr: learning rate of all groups.
        momentum: of the marked groups.
        betas: of the others.
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
        others = [p for p in trained if p.dim() > 1 and (p.dim() != 2 or id(p) in lookups)]
        vectors = [p for p in trained if p.dim() <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "orthogonal": True, "momentum": momentum, "weight_decay": weight_decay},
            {"params": others, "orthogonal": False, "weight_decay": weight_decay},
            {"params": vectors, "orthogonal": False, "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], lr=lr, betas=betas, fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all groups; the gradients of the marked ones are gone afterwards."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["orthogonal"]:
                self._step_matrices(group)
        super().step()  # passes over weights without a gradient
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        shapes: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                shapes[tuple(parameter.shape)].append(parameter)
        for (rows, columns), parameters in shapes.items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            moments = [self._momentum_of(parameter) for parameter in parameters]
            torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, moments, group["momentum"])
            updates = list(orthogonalise(torch.stack(ahead)).to(parameters[0].dtype).unbind())
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, updates, alpha=-group["lr"] * UPDATE_RMS * max(rows, columns) ** 0.5)
            for parameter in parameters:
                parameter.grad = None

    def _momentum_of(self, parameter: torch.Tensor) -> torch.Tensor:
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW expects one in every state that it loads
        return state["momentum"]


def _head_weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of a language model's head, whatever it is called; none of other modules."""
    head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    if head is not None:
        yield from head.parameters()


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Brings the singular values of each matrix near 1 (0.7 to 1.2), in bfloat16.

    Args:
        matrices: [B, M, N], any floating type.

    Returns:
        bfloat16 [B, M, N], about U V^T of each matrix's singular value decomposition.
    """
    a, b, c = COEFFICIENTS
    x: torch.Tensor
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
