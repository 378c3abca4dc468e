"""Every name of transformers, accelerate and PEFT that is private there, or differs between their versions.

In: their models, classes and configurations. Out: what the rest of the package needs to know of them.
An upgrade of one of these libraries is a change of this file; the rest of the package names public names only, besides
the methods and class attributes that subclasses of their classes are meant to override.
Knows nothing of forests, labels or text.
"""

import inspect
import io
import json
import logging
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.gguf.reader import GgufHeader
from transformers.utils import cached_file
from transformers.utils.logging import is_progress_bar_enabled
from transformers.utils.quantization_config import GgufConfig

Model = TypeVar("Model", bound=PreTrainedModel)

# Attributes of a loaded decoder that Trainer, pipelines and PEFT read off the outer model.
LOADED_ATTRIBUTES = (
    *("hf_device_map", "hf_quantizer", "is_quantized", "quantization_method"),
    *("is_loaded_in_4bit", "is_loaded_in_8bit", "_tp_size", "_tp_plan"),
)
# Keys that transformers accepts in a configuration without their being attributes of a fresh PreTrainedConfig.
CONFIG_KEYS = frozenset(
    {"auto_map", "custom_pipelines", "model_type", "num_labels", "quantization_config", "torch_dtype"}
    | {"attn_implementation", "experts_implementation", "output_attentions", "name_or_path", "_commit_hash"}
    | {"_attn_implementation", "tie_word_embeddings", "torchscript"}
)
CONFIG_PATH = "_name_or_path"  # a configuration's key for the folder or Hub id it was read from
PIPELINE_KEYWORD = "_from_pipeline"  # with it `pipeline()` calls from_pretrained
CALLER_KEYWORDS = ("_from_auto", PIPELINE_KEYWORD, "_commit_hash")  # what Auto classes and pipelines add
LOADING_REPORT = "LOAD REPORT"  # in the warning with which transformers lists missing, unexpected and misfit weights
LOADING_LOGGERS = ("transformers.modeling_utils", "transformers.integrations.peft")
GENERATION_FLAGS = "generation flags are not valid"  # in the warning about flags that have no effect
UNKNOWN_BLOCKS = "holds tensors of ggml type"  # in the error about blocks that only the package gguf can unpack
GENERATION_LOGGERS = ("transformers.generation.configuration_utils",)


def new_model(native: type[Model], config: PreTrainedConfig, attention: str) -> Model:
    """Makes a model of class `native` with random weights and the attention implementation `attention`."""
    model: Model = native._from_config(config, attn_implementation=attention)
    return model


class FromDecoder:
    """An attribute of the outer model that is its decoder's: read, set and deleted there.

    transformers' constructor sets some before there is a decoder, which brings its own; those are not kept.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        """Takes the attribute's name from the class body."""
        self.name = name

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        """Reads the decoder's attribute."""
        return self if model is None else getattr(model.backbone, self.name)

    def __set__(self, model: Any, value: Any) -> None:
        """Sets the decoder's attribute."""
        if "backbone" in model._modules:
            setattr(model.backbone, self.name, value)

    def __delete__(self, model: Any) -> None:
        """Deletes the decoder's attribute."""
        delattr(model.backbone, self.name)


def attention_name(config: PreTrainedConfig) -> str | None:
    """Returns the name of the attention implementation that a model with this configuration uses; None if not set."""
    name: str | None = config._attn_implementation
    return name


def name_attention(config: PreTrainedConfig, attention: str) -> None:
    """Sets the attention implementation of a configuration that no model has been made from."""
    config._attn_implementation_internal = attention


def forget_auto_class(config: PreTrainedConfig) -> None:
    """Keeps `save_pretrained` from copying the file of the configuration's class, as it does where remote code ran."""
    config._auto_class = None


def takes_registered_attention(native: type[PreTrainedModel]) -> bool:
    """Returns whether a class takes its attention from transformers' registry; only native classes answer rightly."""
    return bool(native._can_set_attn_implementation())


def execution_device(module: torch.nn.Module) -> torch.device | None:
    """Returns where accelerate's hook runs a module whose weights are offloaded, or None without such a hook."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return None if device is None else torch.device(device)


def cache_keyword(model: PreTrainedModel) -> str:
    """Returns the keyword under which the model's forward takes a `Cache`: its name changed in transformers 5.2x."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def is_adapted(model: PreTrainedModel) -> bool:
    """Returns whether transformers counts adapters as part of the model: it then saves adapters only."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def mark_adapted(model: PreTrainedModel, adapted: bool) -> None:
    """Tells transformers whether the model has adapters; its Trainer trains quantized models only with them."""
    model._hf_peft_config_loaded = adapted


def adapter_path(adapter_kwargs: dict[str, Any]) -> str | None:
    """Takes the adapter that an Auto class found at the model's path out of the keywords it handed over."""
    found: str | None = adapter_kwargs.pop("_adapter_model_path", None)
    return found


def read_json(path: str, name: str, hub: dict[str, object]) -> dict[str, object] | None:
    """Reads the JSON file `name` of a folder or Hub repository; None where there is no such file."""
    found = cached_path(path, name, hub)
    if found is None:
        return None
    values: dict[str, object] = json.loads(Path(found).read_text(encoding="utf-8"))
    return values


def cached_path(path: str, name: str, hub: dict[str, object]) -> str | None:
    """Returns where the file `name` of a folder or Hub repository is, downloaded if need be; None if it has none.

    Args:
        path: folder or Hub id.
        name: file in it.
        hub: keywords of `cached_file` (revision, token, ...).
    """
    found: str | None = cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return found


def gguf_problem(path: str) -> str | None:
    """Returns what is wrong with a GGUF file, as far as its header and its length tell; None if nothing is.

    Args:
        path: of the file.
    """
    size = Path(path).stat().st_size
    if not size:
        return "it is empty. Get it again."
    try:
        header = GgufHeader.from_file(path)
    except ValueError as error:
        return None if UNKNOWN_BLOCKS in str(error) else str(error)
    except (struct.error, UnicodeDecodeError, MemoryError, OverflowError):
        return "it ends within its header, or the header is damaged. Get it again."
    end = max((header.data_start + tensor.offset + tensor.nbytes for tensor in header.tensors), default=0)
    return f"it has {size:,} bytes, but its tensors take {end:,}. Get it again." if end > size else None


def unpacked_gguf() -> GgufConfig:
    """Returns the setting with which transformers unpacks a GGUF file's weights: an ordinary decoder comes out."""
    return GgufConfig(dequantize=True)


def forget_gguf(model: PreTrainedModel) -> None:
    """Makes a model whose weights were unpacked from a GGUF file an ordinary one: it could not be saved otherwise."""
    if not isinstance(getattr(model.config, "quantization_config", None), GgufConfig):
        return
    if any(not parameter.is_floating_point() for parameter in model.parameters()):  # still packed
        return
    del model.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(name, None)


@contextmanager
def without_forced_bars() -> Iterator[None]:
    """Hides the bar that unpacking a GGUF file draws even where transformers' progress bars are switched off."""
    if is_progress_bar_enabled():
        yield
        return
    with redirect_stderr(io.StringIO()):  # handlers of loggers keep the stream that they have
        yield


def without_loading_report() -> AbstractContextManager[None]:
    """Keeps transformers from printing its table of missing, unexpected and misfit weights: callers judge these."""
    return _without_messages(LOADING_REPORT, LOADING_LOGGERS)


def without_generation_flags() -> AbstractContextManager[None]:
    """Keeps transformers from taking our temperature, which divides label logits, for one of text generation."""
    return _without_messages(GENERATION_FLAGS, GENERATION_LOGGERS)


@contextmanager
def _without_messages(text: str, names: Sequence[str]) -> Iterator[None]:
    """Keeps loggers from giving out messages that hold `text`."""

    def is_other(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(is_other)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_other)
