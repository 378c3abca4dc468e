"""Notices when a model's weights are replaced, moved or written, or its adapters switched.

In: a model. Out: whether it is as it was when last asked. Cheap enough to be asked before every pass.
Knows nothing of what depends on the weights.
"""

from typing import Any

import torch
from torch import nn

WrittenState = tuple[list[int], list[tuple[object, ...]]]  # versions of parameters, settings of adapters


def adapted_layers(model: nn.Module) -> list[Any]:
    """The layers that PEFT put into a model, whoever asked for it; in these alone `disable_adapters` is a flag."""
    return [module for module in model.modules() if isinstance(getattr(module, "disable_adapters", None), bool)]


class WeightsWatch:
    """Compares a model's modules and parameters with what they were.

    What is written through `parameter.data` into the same memory leaves no trace that could be noticed. Buffers and
    plain attributes (a layer's scaling, say) are not looked at: decoders may write theirs in every pass.
    """

    def __init__(self, model: nn.Module) -> None:
        """Takes the model as it is now."""
        self.model = model
        self._state: WrittenState = ([], [])
        self._look()

    def replaced(self) -> bool:
        """Whether a module or parameter was replaced or moved since the last call of either method."""
        try:  # dicts compare by identity first: a few microseconds for all modules and parameters
            same = self._holders == self._copies and list(map(torch.Tensor.data_ptr, self._plain)) == self._memory
        except RuntimeError:  # a parameter was compared with another one, which has no truth value
            same = False
        if not same:
            self._look()
        return not same

    def changed(self) -> bool:
        """Whether that, or parameters were written in place, or adapters switched."""
        if self.replaced():
            return True
        state = self._read_state()
        changed, self._state = state != self._state, state
        return changed

    def _look(self) -> None:
        modules = list(self.model.modules())
        self._holders = [held for module in modules for held in (module._modules, module._parameters) if held]
        self._copies = [dict(held) for held in self._holders]
        entries = [entry for held in self._copies for entry in held.values()]
        self._parameters = [entry for entry in entries if isinstance(entry, nn.Parameter)]
        self._plain = [parameter for parameter in self._parameters if type(parameter) is nn.Parameter]
        self._memory = list(map(torch.Tensor.data_ptr, self._plain))
        self._adapted = adapted_layers(self.model)
        self._state = self._read_state()

    def _read_state(self) -> WrittenState:
        written = [0 if parameter.is_inference() else parameter._version for parameter in self._parameters]
        adapters: list[tuple[object, ...]] = [
            (tuple(layer.active_adapters), layer.disable_adapters, str(getattr(layer, "scaling", None)))
            for layer in self._adapted
        ]
        return written, adapters
