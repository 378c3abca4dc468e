"""Reads and writes checkpoint directories: plain decoders, adapters, and DecodNER models.

In: a directory or Hub id. Out: a configuration and a decoder that its own native class loaded, all of its weights from
the files; or a directory that the native class, this package, and a process without this package can load.
Knows nothing of forests, attention or text.
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from .adapters import ADAPTER_CONFIG, has_adapters, save_adapter
from .attention import ATTENTION_NAME
from .compatibility import native_class
from .configuration import DecodNERConfig
from .gguf_files import check_gguf, gguf_path, split_gguf
from .hub import write_code
from .transformers_private import (
    CALLER_KEYWORDS,
    adapter_path,
    forget_auto_class,
    read_json,
    unpacked_gguf,
    without_forced_bars,
    without_loading_report,
)
from .validation import check_dtype

HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
NOT_FOR_THE_DECODER = ("trust_remote_code", "code_revision", *CALLER_KEYWORDS)
BACKBONE = "backbone."  # the decoder's keys begin so in the state dict of our model
SMALL_CHECKPOINT_BYTES = 2**28  # loads in about a second
NAMED = 3  # weights that a message names


logger = logging.getLogger(__name__)


class UnusableModelError(Exception):
    """A model that cannot be used, when `pipeline()` is loading it; elsewhere the same is a ValueError or OSError.

    `pipeline()` catches those, loads the weights with another class, which takes random ones where some are missing,
    and reports tracebacks within a message.
    """


@dataclass(frozen=True)
class Checkpoint:
    """Where a model comes from.

    Attributes:
        config: its configuration, a plain decoder's wrapped.
        weights: directory or Hub id of the decoder's weights; None where the caller hands them over.
        adapter: directory or Hub id of a PEFT adapter to load on top, or None.
        gguf_file: name of the GGUF file in `weights`, if the decoder is one.
    """

    config: DecodNERConfig
    weights: str | None
    adapter: str | None
    gguf_file: str | None = None


@dataclass(frozen=True)
class LoadedDecoder:
    """What `load_decoder` returns.

    Attributes:
        config: the model's configuration.
        backbone: the decoder, whose attention is ours.
        adapter: directory or Hub id of a PEFT adapter to load on top, or None.
        adapter_keywords: what of the caller's keywords says where on the Hub the adapter is.
        info: transformers' loading info.
    """

    config: DecodNERConfig
    backbone: PreTrainedModel
    info: dict[str, Any]
    adapter: str | None = None
    adapter_keywords: dict[str, Any] = field(default_factory=dict)


@contextmanager
def readable_errors(path: str | None, in_pipeline: bool) -> Iterator[None]:
    """Raises errors of loading `path` in such a way that they reach the user: see `UnusableModelError`."""
    try:
        yield
    except SafetensorError as error:
        problem = f"the weights in {path} cannot be read ({error}): a file is incomplete or damaged. Get it again."
        raise UnusableModelError(problem) if in_pipeline else ValueError(problem) from None
    except ZeroDivisionError:
        problem = f"the config.json of {path} is not valid: a size or number of heads is 0."
        raise UnusableModelError(problem) if in_pipeline else ValueError(problem) from None
    except (ValueError, OSError) as error:
        problem = " ".join(str(error).split())
        if isinstance(error, OSError) and path is not None and path not in problem:
            problem = f"cannot load {path}: {problem}"
        if in_pipeline:
            raise UnusableModelError(problem) from None
        if problem == str(error):
            raise
        raise (OSError if isinstance(error, OSError) else ValueError)(problem) from error


def native_keys(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns weights under the decoder's own keys, given under these or the outer model's."""
    return {name.removeprefix(BACKBONE): tensor for name, tensor in state_dict.items()}


def load_decoder(path: str | None, config: Any, model_args: Sequence[Any], keywords: dict[str, Any]) -> LoadedDecoder:
    """Loads a checkpoint's decoder by its own class.

    Args:
        path: directory or Hub id of a decoder, a DecodNER model, or an adapter for either; a GGUF file; None where
            `config` and the keyword `state_dict` say everything.
        config: a configuration to use in place of the checkpoint's, or None.
        model_args: handed to the decoder's class.
        keywords: those of `from_pretrained`; settings of `DecodNERConfig` among them replace the saved ones, the rest
            is handed to the decoder's class.

    Raises:
        ValueError: an architecture that cannot score a token forest, weights that are missing or of other shapes, a
            GGUF file that is incomplete, or no path and no `config` and `state_dict` either.
        OSError: no checkpoint there (transformers' own message).
        ImportError: a GGUF file, but no package gguf.
    """
    keywords = {name: value for name, value in keywords.items() if name not in NOT_FOR_THE_DECODER}
    check_dtype(keywords.get("dtype"))
    hub = {name: keywords[name] for name in HUB_KEYWORDS if name in keywords}
    adapter_keywords = dict(keywords.pop("adapter_kwargs", None) or {})  # Auto classes resolve adapters themselves
    adapter = adapter_path(adapter_keywords)
    if keywords.get("state_dict") is not None:
        keywords["state_dict"] = native_keys(keywords["state_dict"])
    elif path is None:
        raise ValueError("without a path, from_pretrained needs both config and state_dict.")
    gguf_file = keywords.pop("gguf_file", None)
    checkpoint = _given_checkpoint(config) if path is None else resolve_checkpoint(path, hub, gguf_file)
    if checkpoint.adapter is not None:  # the adapter's revision and subfolder are not its base's
        adapter, adapter_keywords = checkpoint.adapter, hub
        keywords = {name: value for name, value in keywords.items() if name not in ("revision", "subfolder")}
    own_config = checkpoint.config if config is None else wrap_config(_given_config(config))
    settings = {name: keywords.pop(name) for name in list(keywords) if name in DecodNERConfig.__annotations__}
    if settings:
        own_config = DecodNERConfig.from_dict(own_config.settings() | settings)
    backbone, info = load_native(
        checkpoint.weights, own_config.text_config, model_args, keywords, checkpoint.gguf_file
    )
    own_config.dtype = backbone.dtype
    return LoadedDecoder(own_config, backbone, info, adapter, adapter_keywords)


def load_native(
    path: str | None,
    text_config: PreTrainedConfig,
    model_args: Sequence[Any],
    keywords: Mapping[str, Any],
    gguf_file: str | None = None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Loads a decoder by its native class, all of its weights from the files.

    Weights that transformers knows to do without, and those tied to others, may be missing. Those of a GGUF file
    (`gguf_file` in `path`) are unpacked.

    Returns:
        The decoder, and transformers' loading info.

    Raises:
        ValueError: an architecture that does not qualify, or weights that are missing or have other shapes.
    """
    source = "the state_dict" if path is None else path
    gguf: dict[str, Any] = {}
    if path is not None and gguf_file is not None:
        source = gguf_path(path, gguf_file)
        gguf = {"gguf_file": gguf_file, "quantization_config": unpacked_gguf()}
    try:
        native = native_class(text_config)
    except ValueError as error:
        raise ValueError(f"{source} cannot be used: {error}") from None
    sizes_may_differ = keywords.get("ignore_mismatched_sizes", False)
    options = gguf | dict(keywords) | {"ignore_mismatched_sizes": True, "output_loading_info": True}
    with without_loading_report(), _without_short_bars(path, gguf_file), without_forced_bars():
        backbone, info = native.from_pretrained(
            path, *model_args, config=text_config, attn_implementation=ATTENTION_NAME, **options
        )
    _check_weights(source, type(backbone).__name__, info, bool(sizes_may_differ))
    if gguf_file is not None:
        backbone.name_or_path = backbone.config.name_or_path = source  # where tokenizers and adapters find it
    return backbone, info


@contextmanager
def _without_short_bars(path: str | None, gguf_file: str | None) -> Iterator[None]:
    """Hides the progress bar while a small local checkpoint loads: that is done before it could be read."""
    files = Path(path).glob(gguf_file or "*.safetensors") if path is not None and Path(path).is_dir() else ()
    size = sum(file.stat().st_size for file in files)
    if not 0 < size < SMALL_CHECKPOINT_BYTES or not is_progress_bar_enabled():
        yield
        return
    disable_progress_bar()
    try:
        yield
    finally:
        enable_progress_bar()


def _check_weights(path: str, decoder: str, info: Mapping[str, Any], sizes_may_differ: bool) -> None:
    """Refuses random weights; warns of weights that are not used."""
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        renamed = f" It holds {_named(unexpected)} instead: were they renamed?" if unexpected else ""
        raise ValueError(
            f"{path} lacks weights of {decoder} that its configuration describes: {_named(missing)}.{renamed} "
            "Use the config.json that belongs to the weights, or save the whole model again."
        )
    misfits = sorted(info["mismatched_keys"], key=str)
    if misfits and not sizes_may_differ:
        name, saved, expected = misfits[0]
        raise ValueError(
            f"the weights in {path} have other sizes than its config.json says: "
            f"{_named([str(key[0]) for key in misfits])} ({name} is {list(saved)} in the file and {list(expected)} by "
            "config.json). Check the sizes there: attention heads, hidden sizes, vocabulary."
        )
    if unexpected:
        logger.warning(
            "%s holds weights that %s does not have; they are not used: %s.", path, decoder, _named(unexpected)
        )


def _named(names: Sequence[str]) -> str:
    """The first of `names`, and how many there are."""
    more = len(names) - NAMED
    listed = ", ".join(names[:NAMED])
    return f"{listed} and {more} more" if more > 0 else listed


def resolve_checkpoint(path: str, hub: dict[str, Any], gguf_file: str | None = None) -> Checkpoint:
    """Finds out what `path` holds: a decoder, a DecodNER model, or an adapter for either.

    Args:
        path: directory or Hub id, or the path of a GGUF file.
        hub: those of `HUB_KEYWORDS` that the caller gave.
        gguf_file: name of a GGUF file in the directory or repository, if it is what to load.

    Raises:
        ValueError: the configuration names no model type that transformers knows.
        OSError: no configuration there (transformers' own message).
        ImportError: a GGUF file, but no package gguf.
    """
    if gguf_file is None:
        path, gguf_file = split_gguf(path)
    if gguf_file is not None:
        check_gguf(path, gguf_file, hub)
        return Checkpoint(_read_config(path, hub, gguf_file), path, None, gguf_file)
    if Path(path).is_file():
        raise ValueError(f"{path} is a file: a model is a folder, a name on the Hub, or a .gguf file.")
    adapter_config = read_json(path, ADAPTER_CONFIG, hub)
    if adapter_config is None:
        return Checkpoint(_read_config(path, hub), path, None)
    base = adapter_config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ValueError(f"the adapter at {path!r} does not name its base model (base_model_name_or_path).")
    local = {name: value for name, value in hub.items() if name not in ("revision", "subfolder")}
    folder, file = split_gguf(base)
    if file is not None:
        check_gguf(folder, file, local)
    if read_json(path, "config.json", hub) is None:
        return Checkpoint(_read_config(folder, local, file), folder, path, file)
    return Checkpoint(_read_config(path, hub), folder, path, file)


def wrap_config(config: Any) -> DecodNERConfig:
    """Returns `config` where it is a DecodNER configuration already, else one around it."""
    if config.model_type == DecodNERConfig.model_type:
        own: DecodNERConfig = config
        return own
    return DecodNERConfig(text_config=config, name_or_path=config.name_or_path)


def save_decoder(
    config: DecodNERConfig,
    backbone: PreTrainedModel,
    directory: str,
    *,
    is_main_process: bool = True,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    include_code: bool = False,
    **keywords: Any,
) -> None:
    """Writes the decoder's own shards and keys, or its adapter alone, and our config.json around the decoder's.

    Args:
        config: the model's configuration.
        backbone: the decoder.
        directory: made if need be.
        is_main_process: whether this process writes the configuration.
        state_dict: weights to write instead of the decoder's, under its or the outer model's keys.
        include_code: also write the code, and let config.json name it.
        **keywords: handed to the decoder's own `save_pretrained`.
    """
    if state_dict is not None:
        state_dict = native_keys(state_dict)
    if not has_adapters(backbone):
        backbone.save_pretrained(directory, is_main_process=is_main_process, state_dict=state_dict, **keywords)
    elif is_main_process:
        save_adapter(backbone, directory, state_dict)
    if is_main_process:
        _write_config(config, _config_as_saved(backbone), directory, include_code)


def _write_config(config: DecodNERConfig, text_config: PreTrainedConfig, directory: str, include_code: bool) -> None:
    """Writes config.json and the code that it names: all of it if asked to, else a file that imports the package."""
    values = config.settings() | {"text_config": text_config.to_dict()}
    saved = DecodNERConfig.from_dict(values)
    saved.architectures = ["DecodNERForSpanClassification"]
    saved.dtype = text_config.dtype
    write_code(saved, directory, whole=include_code)
    forget_auto_class(saved)
    saved.save_pretrained(directory)


def _config_as_saved(backbone: PreTrainedModel) -> PreTrainedConfig:
    """The decoder's configuration as it fits its files: under an adapter they may be quantized while loading only."""
    quantizer = getattr(backbone, "hf_quantizer", None)
    if quantizer is None or quantizer.pre_quantized or not has_adapters(backbone):
        return backbone.config
    config = copy.deepcopy(backbone.config)
    del config.quantization_config
    return config


def _given_checkpoint(config: Any) -> Checkpoint:
    """A model that the caller hands over, as its configuration and, later, its weights."""
    if config is None:
        raise ValueError("without a path, from_pretrained needs both config and state_dict.")
    return Checkpoint(wrap_config(_given_config(config)), None, None)


def _given_config(config: Any) -> PreTrainedConfig:
    """A configuration that the caller passed, as a copy; anything else is refused."""
    if not isinstance(config, PreTrainedConfig):
        raise ValueError(f"config must be a configuration object, not {type(config).__name__}.")
    return copy.deepcopy(config)


def _read_config(path: str, hub: dict[str, Any], gguf_file: str | None = None) -> DecodNERConfig:
    """Reads the configuration of a directory or Hub repository, or that of a GGUF file in it."""
    source = path if gguf_file is None else gguf_path(path, gguf_file)
    try:
        config = _parse_config(path, hub) if gguf_file is None else _gguf_config(path, hub, gguf_file)
    except StrictDataclassError as error:  # transformers checks sizes against each other
        reason = str(error).splitlines()[-1].strip().removeprefix("ValueError: ")
        raise ValueError(f"the config.json of {source} is not valid: {reason}") from None
    config.name_or_path = source
    return config


def _parse_config(path: str, hub: dict[str, Any]) -> DecodNERConfig:
    values, _ = PreTrainedConfig.get_config_dict(path, **hub)
    model_type = values.get("model_type")
    if model_type == DecodNERConfig.model_type:
        config: DecodNERConfig = DecodNERConfig.from_dict(values)
        if config.text_config is None:
            raise ValueError(f"the configuration at {path!r} has no text_config: it names no decoder.")
        return config
    if model_type in CONFIG_MAPPING:
        return wrap_config(AutoConfig.from_pretrained(path, **hub))
    raise ValueError(
        f"the configuration at {path!r} names model type {model_type!r}, which this version of transformers does "
        "not have; decoders whose code comes with the checkpoint cannot be used."
    )


def _gguf_config(path: str, hub: dict[str, Any], gguf_file: str) -> DecodNERConfig:
    """Reads the decoder's configuration from a GGUF file, once: its vocabulary makes that slow."""
    source = gguf_path(path, gguf_file)
    try:
        values, _ = PreTrainedConfig.get_config_dict(path, gguf_file=gguf_file, **hub)
        return wrap_config(CONFIG_MAPPING[values["model_type"]].from_dict(values))
    except KeyError as error:
        raise ValueError(f"{source} does not say its {error}: it is incomplete, or holds no decoder.") from None
    except (ValueError, NotImplementedError) as error:  # an architecture that transformers does not read
        raise ValueError(f"{source} cannot be used: {error}") from None
