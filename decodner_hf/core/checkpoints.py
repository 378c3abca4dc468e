"""Reading and writing checkpoint directories: plain decoders, adapters, and DecodNER models.

In: a directory or Hub id. Out: its configuration and where its weights lie; or a directory that the native class, this
package, and a process without this package can load.
Knows nothing of forests, attention or text.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import cached_file

from .configuration import DecodNERConfig
from .hub import copy_code, name_code

HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


@dataclass(frozen=True)
class Checkpoint:
    """Where a model comes from.

    Attributes:
        config: its configuration, a plain decoder's wrapped.
        weights: directory or Hub id of the decoder's weights.
        adapter: directory or Hub id of a PEFT adapter to load on top, or None.
    """

    config: DecodNERConfig
    weights: str
    adapter: str | None


def resolve_checkpoint(path: str, hub: dict[str, Any]) -> Checkpoint:
    """Finds out what lies at `path`: a decoder, a DecodNER model, or an adapter for either.

    Args:
        path: directory or Hub id.
        hub: those of `HUB_KEYWORDS` that the caller gave.

    Raises:
        ValueError: the configuration names no model type that transformers knows.
        OSError: no configuration there (transformers' own message).
    """
    adapter_config = _read_json(path, "adapter_config.json", hub)
    if adapter_config is None:
        return Checkpoint(_read_config(path, hub), path, None)
    base = adapter_config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"the adapter at {path!r} does not name its base model (base_model_name_or_path).")
    local = {name: value for name, value in hub.items() if name not in ("revision", "subfolder")}
    holder, keywords = (path, hub) if _read_json(path, "config.json", hub) is not None else (base, local)
    return Checkpoint(_read_config(holder, keywords), str(base), path)


def wrap_config(config: Any) -> DecodNERConfig:
    """Returns `config` where it is a DecodNER configuration already, else one around it."""
    if config.model_type == DecodNERConfig.model_type:
        own: DecodNERConfig = config
        return own
    return DecodNERConfig(text_config=config, name_or_path=config.name_or_path)


def write_config(config: DecodNERConfig, text_config: PreTrainedConfig, directory: str, include_code: bool) -> None:
    """Writes config.json, and, if asked to, the code that loads it where this package is not installed."""
    values = config.settings() | {"text_config": text_config.to_dict()}
    saved = DecodNERConfig.from_dict(values)
    saved.architectures = ["DecodNERForSpanClassification"]
    saved.dtype = text_config.dtype
    if include_code:
        name_code(saved)
        copy_code(directory)
    else:
        for name in ("auto_map", "custom_pipelines"):
            if hasattr(saved, name):
                delattr(saved, name)
    saved.save_pretrained(directory)


def _read_config(path: str, hub: dict[str, Any]) -> DecodNERConfig:
    values, _ = PreTrainedConfig.get_config_dict(path, **hub)
    model_type = values.get("model_type")
    if model_type == DecodNERConfig.model_type:
        config: DecodNERConfig = DecodNERConfig.from_dict(values)
        if config.text_config is None:
            raise ValueError(f"the configuration at {path!r} has no text_config: it names no decoder.")
    elif model_type in CONFIG_MAPPING:
        config = wrap_config(AutoConfig.from_pretrained(path, **hub))
    else:
        raise ValueError(
            f"the configuration at {path!r} names model type {model_type!r}, which this version of transformers does "
            "not have; decoders whose code comes with the checkpoint cannot be used."
        )
    config.name_or_path = path
    return config


def _read_json(path: str, name: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    found = cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    if found is None:
        return None
    values: dict[str, Any] = json.loads(Path(found).read_text(encoding="utf-8"))
    return values
