"""Notices when a model's weights are changed, moved or replaced, or its adapters switched.

In: a model. Out: whether it is as it was when last asked. Cheap enough to be asked before every pass.
Knows nothing of what depends on the weights.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn


def adapted_layers(model: nn.Module) -> list[Any]:
    """The layers that PEFT put into a model, whoever asked for it; in these alone `disable_adapters` is a flag."""
    return [module for module in model.modules() if isinstance(getattr(module, "disable_adapters", None), bool)]


class WeightsWatch:
    """Compares a model's modules and parameters with what they were.

    What is written through `parameter.data` into the same memory leaves no trace that could be noticed. Buffers and
    plain attributes (a layer's scaling, say) are not looked at: decoders may write theirs in every pass.

    Attributes:
        in_place: whether a change of values in the same memory counts too.
    """

    def __init__(self, model: nn.Module, *, in_place: bool = True) -> None:
        """Takes the model as it is now."""
        self.model, self.in_place = model, in_place
        self._look()

    def changed(self) -> bool:
        """Whether anything changed since the last call, or since the watch was made."""
        if self._state() == self._seen:
            return False
        self._look()
        return True

    def _look(self) -> None:
        modules = list(self.model.modules())
        self._children = [module._modules for module in modules if module._modules]
        self._parameters = [module._parameters for module in modules if module._parameters]
        self._adapted = adapted_layers(self.model)
        self._seen = self._state()

    def _state(self) -> tuple[Any, ...]:
        children = list(map(id, _values(self._children)))
        parameters = [parameter for parameter in _values(self._parameters) if parameter is not None]
        plain = [parameter for parameter in parameters if type(parameter) is nn.Parameter]
        memory = list(map(torch.Tensor.data_ptr, plain))
        written = self.in_place and [0 if parameter.is_inference() else parameter._version for parameter in parameters]
        adapters = [
            (tuple(layer.active_adapters), layer.disable_adapters, str(getattr(layer, "scaling", None)))
            for layer in self._adapted
        ]
        return children, list(map(id, parameters)), memory, written, adapters


def _values(held: list[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, held))
