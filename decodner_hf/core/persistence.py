"""The model's ways in and out of files and of the Hub, as methods that the model class inherits.

In: a directory or Hub id; or a model. Out: a model whose decoder was loaded by its own native class; or files.
Knows nothing of forests, attention or text.
"""

import copy
from os import PathLike
from typing import Any

import torch
from transformers import PreTrainedConfig

from .attention import ATTENTION_NAME
from .checkpoints import HUB_KEYWORDS, resolve_checkpoint, wrap_config, write_config
from .compatibility import native_class
from .hub import upload, write_model_card

BACKBONE = "backbone."
NOT_FOR_THE_DECODER = ("trust_remote_code", "_from_auto", "_from_pipeline")


class CheckpointMethods:
    """Loading and saving by the decoder's own class; the host class provides `check` and `eval`."""

    config_class: Any
    config: Any
    backbone: Any

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Loads a decoder checkpoint, a saved DecodNER model or an adapter, from a directory or the Hub.

        The decoder is loaded by its own class, with all keyword arguments (dtype, device_map, quantization_config,
        revision, token, ...); settings of `DecodNERConfig` among them override the saved ones.

        Raises:
            ValueError: the architecture cannot score a token forest (says why), or `attn_implementation` was given.
        """
        if kwargs.pop("attn_implementation", ATTENTION_NAME) not in (None, ATTENTION_NAME):
            raise ValueError(
                f'span scoring needs its own attention: leave attn_implementation out ("{ATTENTION_NAME}").'
            )
        for name in NOT_FOR_THE_DECODER:
            kwargs.pop(name, None)
        path = str(pretrained_model_name_or_path)
        hub = {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}
        found_by_auto = dict(kwargs.pop("adapter_kwargs", None) or {})  # the Auto classes resolve adapters themselves
        adapter = found_by_auto.pop("_adapter_model_path", None)
        checkpoint = resolve_checkpoint(path, hub)
        if checkpoint.adapter is not None:  # the adapter's revision and subfolder are not its base's
            adapter, found_by_auto = checkpoint.adapter, hub
            kwargs = {name: value for name, value in kwargs.items() if name not in ("revision", "subfolder")}
        own_config = checkpoint.config if config is None else wrap_config(_given_config(config))
        settings = {name: kwargs.pop(name) for name in list(kwargs) if name in cls.config_class.__annotations__}
        if settings:
            own_config = cls.config_class.from_dict(own_config.settings() | settings)
        native = native_class(own_config.text_config)
        loaded = native.from_pretrained(
            checkpoint.weights,
            *model_args,
            config=own_config.text_config,
            attn_implementation=ATTENTION_NAME,
            **kwargs,
        )
        backbone, *info = loaded if isinstance(loaded, tuple) else (loaded,)
        own_config.dtype = backbone.dtype
        model: Any = cls(own_config, backbone)  # type: ignore[call-arg]
        model.check()
        if adapter is not None:
            model.load_adapter(str(adapter), adapter_kwargs=found_by_auto)
        model.eval()
        return (model, *info) if info else model

    @classmethod
    def from_hub(cls, model_id: str | PathLike[str], **kwargs: Any) -> Any:
        """`from_pretrained` under the original design's name."""
        return cls.from_pretrained(model_id, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        *,
        include_code: bool = False,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Writes the decoder's own shards and keys, and our config.json around the decoder's.

        Args:
            save_directory: made if need be.
            is_main_process: whether this process writes the configuration.
            state_dict: weights to write instead of the model's, under its or the decoder's keys.
            include_code: also write the code, so that the directory loads with `trust_remote_code=True` where this
                package is not installed; such a directory needs that flag everywhere.
            push_to_hub: upload afterwards; `repo_id`, `token` and the like are then taken from `kwargs`.
            **kwargs: handed to the decoder's own `save_pretrained` (max_shard_size, variant, ...).
        """
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", str(save_directory)), include_code=include_code, **kwargs)
            return
        if state_dict is not None:
            kwargs["state_dict"] = {name.removeprefix(BACKBONE): tensor for name, tensor in state_dict.items()}
        directory = str(save_directory)
        self.backbone.save_pretrained(directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            write_config(self.config, _config_as_saved(self.backbone), directory, include_code)

    def push_to_hub(self, repo_id: str, *, include_code: bool = True, **kwargs: Any) -> Any:
        """Uploads the model, by default with the code that loads it where this package is not installed.

        Args:
            repo_id: "name" or "organization/name"; made if need be.
            include_code: see `save_pretrained`.
            **kwargs: private, token, revision, create_pr, commit_message, commit_description.
        """

        def save(directory: str) -> None:
            self.save_pretrained(directory, include_code=include_code)
            write_model_card(self.config, directory)

        return upload(save, repo_id, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads weights under this model's keys or the decoder's own."""
        if not any(name.startswith(BACKBONE) for name in state_dict):
            return self.backbone.load_state_dict(state_dict, strict=strict, assign=assign)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)  # type: ignore[misc]

    def load_adapter(self, peft_model_id: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Loads a PEFT adapter onto the decoder, as transformers' `load_adapter`, whose arguments it takes.

        Raises:
            ValueError: an adapter that leaves weights of its own unset: it was made for another model, or on this
                model's wrapper instead of its `backbone`.
        """
        info = self.backbone.load_adapter(peft_model_id, *args, **kwargs)
        missing = sorted(getattr(info, "missing_keys", None) or ())
        if missing:
            raise ValueError(
                f"the adapter {peft_model_id!r} does not fit this decoder: {len(missing)} of its weights are missing, "
                f"for example {missing[0]!r}. Make adapters with model.add_adapter, or by PEFT on model.backbone."
            )
        return info

    def add_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """Adds a new PEFT adapter to the decoder, as transformers' `add_adapter`."""
        return self.backbone.add_adapter(*args, **kwargs)

    def set_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """Activates one of the loaded adapters, as transformers' `set_adapter`."""
        return self.backbone.set_adapter(*args, **kwargs)

    def disable_adapters(self) -> None:
        """Switches all adapters off, as transformers' `disable_adapters`."""
        self.backbone.disable_adapters()

    def enable_adapters(self) -> None:
        """Switches the adapters on again, as transformers' `enable_adapters`."""
        self.backbone.enable_adapters()

    def active_adapters(self) -> Any:
        """Names of the active adapters, as transformers' `active_adapters`."""
        return self.backbone.active_adapters()


def _config_as_saved(backbone: Any) -> Any:
    """The decoder's configuration as it fits its files: those below an adapter may be quantized while loading only."""
    quantizer = getattr(backbone, "hf_quantizer", None)
    if quantizer is None or quantizer.pre_quantized or not getattr(backbone, "_hf_peft_config_loaded", False):
        return backbone.config
    config = copy.deepcopy(backbone.config)
    del config.quantization_config
    return config


def _given_config(config: Any) -> Any:
    """A configuration that the caller passed, as a copy; anything else is refused."""
    if not isinstance(config, PreTrainedConfig):
        raise ValueError(f"config must be a configuration object, not {type(config).__name__}.")
    return copy.deepcopy(config)
