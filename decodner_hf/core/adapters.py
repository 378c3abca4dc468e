"""Puts PEFT adapters on the decoder by PEFT's own functions: transformers' methods need a newer PEFT than it releases.

In: a native causal LM, and an adapter's configuration, folder or name. Out: the same decoder with the adapter in it;
or an adapter's folder, as PEFT and transformers write and read it.
Knows nothing of forests, labels or text.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from .transformers_private import cached_path, is_adapted, mark_adapted, without_loading_report

MINIMUM_PEFT = "0.19.1"  # what transformers 5.17 to 5.24 can load adapters with
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # of the keys in an adapter's file
OUTER_PREFIX = f"{PEFT_PREFIX}backbone."  # the same where PEFT was applied to the model around the decoder
DEFAULT_NAME = "default"


def add_adapter(backbone: PreTrainedModel, adapter_config: object, adapter_name: str | None = None) -> None:
    """Puts a new adapter, with fresh weights, into the decoder and activates it.

    Args:
        backbone: the decoder; changed in place.
        adapter_config: a `PeftConfig`, for example `LoraConfig(target_modules="all-linear")`.
        adapter_name: "default" if None.

    Raises:
        ImportError: PEFT is not installed, or older than `MINIMUM_PEFT`.
        ValueError: another kind of configuration, or a name that is taken.
    """
    peft = _peft("peft")
    name = adapter_name or DEFAULT_NAME
    if not isinstance(adapter_config, peft.PeftConfig):
        raise ValueError(f"adapter_config must be a PeftConfig, not {type(adapter_config).__name__}.")
    if name in adapter_names(backbone):
        raise ValueError(f"there is an adapter {name!r} already; the adapters are {adapter_names(backbone)}.")
    refuse_prompt_learning(SimpleNamespace(peft_config={name: adapter_config}))
    adapter_config.base_model_name_or_path = backbone.name_or_path
    _peft("peft.functional").inject_adapter_in_model(adapter_config, backbone, name)
    mark_adapted(backbone, True)
    set_adapter(backbone, name)


def load_adapter(backbone: PreTrainedModel, path: str | None, adapter_name: str | None, **kwargs: Any) -> Any:
    """Loads an adapter from a folder or the Hub and activates it; arguments and result as transformers' method.

    It may have been made on the decoder, or by `get_peft_model` on the model around it.

    Raises:
        ImportError: as `add_adapter`.
        ValueError: an adapter that leaves weights of its own unset: it was made for another decoder, which is then
            without it.
    """
    peft = _peft("peft")
    state = None if path is None else _outer_state(path, kwargs)
    if state is not None:
        kwargs |= {"peft_config": peft.PeftConfig.from_pretrained(path, **(kwargs.pop("adapter_kwargs", None) or {}))}
        path, kwargs["adapter_state_dict"] = None, state
    before = set(backbone.state_dict())
    with without_loading_report():
        info = backbone.load_adapter(path, adapter_name, **kwargs)
    missing = set(getattr(info, "missing_keys", None) or ())
    if set(backbone.state_dict()) != before:  # else one was replaced in place
        missing -= before  # transformers counts the weights of the other adapters, too
    if missing:
        delete_adapter(backbone, adapter_name or DEFAULT_NAME)
        raise ValueError(
            f"the adapter {path!r} does not fit this decoder: {len(missing)} of its weights are missing, "
            f"for example {min(missing)!r}. Load the model that it was made for."
        )
    return info


def _outer_state(path: str, keywords: Mapping[str, object]) -> dict[str, torch.Tensor] | None:
    """Reads an adapter made on the model around the decoder, under the decoder's keys; None if it was not."""
    given = keywords.get("adapter_kwargs")
    hub = dict(given) if isinstance(given, Mapping) else {}
    file = cached_path(path, ADAPTER_WEIGHTS, hub)
    if file is None:
        return None
    state = load_file(file)
    if not state or not all(name.startswith(OUTER_PREFIX) for name in state):
        return None
    return {name.replace(OUTER_PREFIX, PEFT_PREFIX, 1): tensor for name, tensor in state.items()}


def refuse_prompt_learning(model: object) -> None:
    """Raises a ValueError for a model that PEFT puts learned vectors before: packed passes would run without them."""
    configs = getattr(model, "peft_config", None)
    for name, config in (configs or {}).items():
        if getattr(config, "is_prompt_learning", False):
            raise ValueError(
                f"the adapter {name!r} ({config.peft_type.value}) learns a prompt of vectors, which spans cannot be "
                "scored with: use LoRA or another method that changes weights."
            )


def adapter_names(backbone: PreTrainedModel) -> list[str]:
    """Returns the names of all adapters in the decoder."""
    return list(getattr(backbone, "peft_config", None) or ())


def active_adapters(backbone: PreTrainedModel) -> list[str]:
    """Returns the names of the adapters that take part in a forward; none where there is no adapter."""
    for layer in _tuner_layers(backbone):
        return list(layer.active_adapters)
    return []


def set_adapter(backbone: PreTrainedModel, adapter_name: str | list[str]) -> None:
    """Activates one of the decoder's adapters, or several; the others do not take part.

    Raises:
        ValueError: a name that is not among the adapters.
    """
    wanted = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
    unknown = [name for name in wanted if name not in adapter_names(backbone)]
    if unknown or not wanted:
        raise ValueError(f"there is no adapter {unknown}; the adapters are {adapter_names(backbone)}.")
    _peft("peft.functional").set_adapter(backbone, adapter_name)


def enable_adapters(backbone: PreTrainedModel, enabled: bool) -> None:
    """Switches the decoder's adapters on, or off, so that it computes what it computed without them.

    Raises:
        ValueError: there is none.
    """
    layers = _tuner_layers(backbone)
    if not layers:
        raise ValueError("the decoder has no adapter: add or load one first.")
    for layer in layers:
        layer.enable_adapters(enabled=enabled)


def delete_adapter(backbone: PreTrainedModel, adapter_name: str | list[str]) -> None:
    """Removes one of the decoder's adapters, or several.

    Raises:
        ValueError: a name that is not among the adapters.
    """
    for name in [adapter_name] if isinstance(adapter_name, str) else adapter_name:
        if name not in adapter_names(backbone):
            raise ValueError(f"there is no adapter {name!r}; the adapters are {adapter_names(backbone)}.")
        prefix = f"{backbone.peft_config[name].peft_type.value.lower()}_"
        _peft("peft.functional").delete_adapter(backbone, adapter_name=name, prefix=prefix)
        backbone.peft_config.pop(name, None)
    if not adapter_names(backbone):
        del backbone.peft_config
        mark_adapted(backbone, False)


def adapter_state(
    backbone: PreTrainedModel, adapter_name: str | None = None, state_dict: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Returns an adapter's weights under PEFT's keys, without the name of the adapter.

    Args:
        backbone: the decoder.
        adapter_name: the first active one if None.
        state_dict: the decoder's weights to take them from, if not its own.

    Raises:
        ValueError: there is no adapter.
    """
    name = adapter_name or next(iter(active_adapters(backbone)), None)
    if name is None:
        raise ValueError("the decoder has no active adapter: add or load one first.")
    state: dict[str, torch.Tensor] = _peft("peft.functional").get_peft_model_state_dict(
        backbone, state_dict=state_dict, adapter_name=name
    )
    return state


def save_adapter(
    backbone: PreTrainedModel, directory: str, state_dict: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Writes the active adapter as PEFT does: its configuration and one safetensors file.

    Args:
        backbone: the decoder.
        directory: made if need be.
        state_dict: the decoder's weights to take the adapter's from, if not its own.

    Raises:
        ValueError: no active adapter, or several.
    """
    active = active_adapters(backbone)
    if len(active) != 1:
        raise ValueError(
            f"one adapter is saved at a time, but {active} are active: call set_adapter with one of "
            f"{adapter_names(backbone)} first."
        )
    state = adapter_state(backbone, active[0], state_dict)
    Path(directory).mkdir(parents=True, exist_ok=True)
    backbone.peft_config[active[0]].save_pretrained(directory)
    save_file(
        {f"{PEFT_PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()},
        Path(directory) / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )


def has_adapters(backbone: PreTrainedModel) -> bool:
    """Returns whether adapters are part of the decoder, so that saving it saves them alone."""
    return is_adapted(backbone)


def _tuner_layers(backbone: PreTrainedModel) -> list[Any]:
    """The layers that hold adapters, and the modules that PEFT trains whole."""
    if not adapter_names(backbone):
        return []
    layers = _peft("peft.tuners.tuners_utils").BaseTunerLayer
    wrappers = _peft("peft.utils").ModulesToSaveWrapper
    return [module for module in backbone.modules() if isinstance(module, layers | wrappers)]


def _peft(module: str) -> Any:
    """Imports a module of PEFT; not by a statement, or checkpoints' code would be refused where PEFT is absent."""
    if find_spec("peft") is None:
        raise ImportError('adapters need PEFT: pip install "decodner-hf[peft]", or pip install peft.')
    installed = version("peft")
    if Version(installed) < Version(MINIMUM_PEFT):
        raise ImportError(
            f"adapters need PEFT {MINIMUM_PEFT} or newer with transformers {version('transformers')}, but PEFT "
            f'{installed} is installed: pip install "peft>={MINIMUM_PEFT}".'
        )
    return import_module(module)
