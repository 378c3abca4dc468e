"""Defines the model: a causal decoder of transformers that scores a token forest over a cached prefix.

In: token ids, positions and tree structure. Out: logits of the label symbols at every span, [S, L].
The decoder is a native class of transformers, loaded, sharded, quantized and saved by its own code; only its attention
function is ours. Knows nothing of text: tokenizers, prompts and entities are the pipeline's.
"""

import copy
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import CommitInfo
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.generation.utils import GenerateOutput
from transformers.utils.generic import ModelOutput

from .adapters import (
    active_adapters,
    adapter_state,
    add_adapter,
    delete_adapter,
    enable_adapters,
    load_adapter,
    set_adapter,
)
from .attention import ATTENTION_NAME
from .cache import DualBufferCache
from .checkpoints import BACKBONE, load_decoder, readable_errors, save_decoder
from .compatibility import (
    TokenIds,
    check_backbone,
    input_device,
    layer_windows,
    native_class,
    node_limit,
    position_limit,
)
from .compilation import compile_model, without_gradients
from .configuration import DecodNERConfig
from .cuda_graphs import SpanPassGraphs
from .forest import TokenForest
from .growth import GrownRows
from .hub import upload, write_model_card
from .kept_rows import KeptRows
from .label_head import (
    SpanClassifierOutput,
    SpanPass,
    has_plain_head,
    packed_options,
    row_head_equals_native,
    span_loss,
)
from .packed_pass import extend_prefix, forest_logits, pass_metadata, round_logits, run_span_pass
from .transformers_private import (
    LOADED_ATTRIBUTES,
    PIPELINE_KEYWORD,
    FromDecoder,
    attention_name,
    cache_keyword,
    forget_gguf,
    name_attention,
    new_model,
    without_generation_flags,
)


class DecodNERForSpanClassification(PreTrainedModel, GenerationMixin):
    """Scores candidate spans with a causal decoder; see `encode_prefix` and `score_forest`.

    `from_pretrained` takes plain decoder checkpoints, adapters, and what `save_pretrained` wrote.
    """

    config_class = DecodNERConfig
    config: DecodNERConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["forest_metadata"]
    generation_config = FromDecoder()
    peft_config = FromDecoder()
    _hf_peft_config_loaded = FromDecoder()
    has_ordinary_forward: ClassVar[bool] = True

    def __init__(self, config: DecodNERConfig, backbone: PreTrainedModel | None = None) -> None:
        """Wraps `backbone`, whose attention must be "decodner" already, or a new random one by `config.text_config`.

        To wrap a model of your own use `from_backbone`.
        """
        if config.text_config is None:
            raise ValueError("the config has no text_config: say which decoder to use, or call from_pretrained.")
        native = native_class(config.text_config)
        asked = None if backbone is not None else attention_name(config)  # of an ordinary decoder, for its matrices
        attention = asked or ATTENTION_NAME
        name_attention(config, attention)
        with without_generation_flags():
            super().__init__(config)
        if backbone is None:
            backbone = new_model(native, config.text_config, attention)
        self.backbone = backbone
        config.text_config = backbone.config
        self.position_limit = position_limit(self._decoder_config)
        self.node_limit = node_limit(self._decoder_config)
        self.layer_windows = layer_windows(self._decoder_config)
        self.row_head = has_plain_head(backbone)
        self.graphs: SpanPassGraphs | None = None
        for name in LOADED_ATTRIBUTES:
            if hasattr(backbone, name):
                setattr(self, name, getattr(backbone, name))
        self._has_weights = True  # the backbone initialised or loaded its own
        self.post_init()
        self._has_weights = False

    def init_weights(self) -> None:
        """Initialises the decoder's weights by its own rules, as after `to_empty`; ties what is tied."""
        if self._has_weights:
            return
        self.backbone.init_weights()
        self.row_head = has_plain_head(self.backbone)

    def generate(self, *args: object, **kwargs: object) -> GenerateOutput | torch.Tensor:
        """Continues token ids with the decoder, as transformers' `generate`."""
        return self.backbone.generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args: object, **kwargs: object) -> dict[str, object]:
        """Returns the inputs of the decoder's next step, as its own method: PEFT asks for it."""
        result: dict[str, object] = self.backbone.prepare_inputs_for_generation(*args, **kwargs)
        return result

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Moves or casts the weights; graphs, which read them at their old addresses, are released first."""
        if self.graphs is not None:
            self.graphs.release()
        try:
            result: Self = super()._apply(fn, recurse)
            return result
        except NotImplementedError as error:  # torch has no data to move
            if self.device.type != "meta":
                raise NotImplementedError(
                    "the model's weights are offloaded, and accelerate moves them: it cannot be moved or cast itself. "
                    "Load it again without offloading, or take the hooks off first "
                    "(accelerate.hooks.remove_hook_from_submodules)."
                ) from error
            raise NotImplementedError(
                "the model has no weights yet. Its files have the decoder's keys: let accelerate's "
                "load_checkpoint_and_dispatch fill model.backbone, or call from_pretrained with device_map."
            ) from error

    @property
    def device(self) -> torch.device:
        """The device that token ids go to; of offloaded weights, the one that accelerate runs them on."""
        return input_device(self.backbone)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that the decoder can read."""
        return int(self.get_input_embeddings().weight.shape[0])

    @property
    def vocab_size(self) -> int:
        """`vocabulary_size` under the name that transformers gives it."""
        return self.vocabulary_size

    @property
    def _decoder_config(self) -> PreTrainedConfig:
        return self.backbone.config.get_text_config(decoder=True)

    @classmethod
    def from_backbone(cls, model: PreTrainedModel, config: DecodNERConfig | None = None) -> Self:
        """Wraps a loaded native causal LM; `model` itself stays as it is, its weights are shared and not copied.

        Raises:
            ValueError: the architecture cannot score a token forest; says why.
        """
        native = native_class(model.config) if isinstance(model, PreTrainedModel) else None
        if native is None or not isinstance(model, native):
            expected = native.__name__ if native is not None else "a causal language model of transformers"
            raise ValueError(
                f"from_backbone wraps a model with its language head ({expected}), not {type(model).__name__}."
            )
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        backbone = copy.deepcopy(model, shared)  # new modules and config around the same tensors
        backbone.set_attn_implementation(ATTENTION_NAME)
        forget_gguf(backbone)
        own_config = DecodNERConfig() if config is None else copy.deepcopy(config)
        own_config.text_config = backbone.config
        own_config.name_or_path = own_config.name_or_path or model.config.name_or_path
        wrapped = cls(own_config, backbone)
        wrapped.check()
        wrapped.train(model.training)
        return wrapped

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str] | None,
        *model_args: object,
        config: PreTrainedConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Loads a decoder checkpoint, a saved DecodNER model or an adapter, from a directory or the Hub.

        A GGUF file is a path that ends in .gguf, or the keyword `gguf_file` beside a directory or Hub id; its weights
        are unpacked. Without a path (None) the model is `config` with the weights in `state_dict`, under its or the
        decoder's keys.

        The decoder is loaded by its own class, with all keyword arguments (dtype, device_map, quantization_config,
        revision, token, ...); settings of `DecodNERConfig` among them override the saved ones.

        Returns:
            The model, in evaluation mode; with `output_loading_info=True` also transformers' loading info.

        Raises:
            ValueError: the architecture cannot score a token forest, weights are missing, have other sizes or are not
                finite (says which), or `attn_implementation` was given.
            OSError: no checkpoint there.
            ImportError: a GGUF file, but no package gguf.
        """
        if kwargs.pop("attn_implementation", ATTENTION_NAME) not in (None, ATTENTION_NAME):
            raise ValueError(
                f'span scoring needs its own attention: leave attn_implementation out ("{ATTENTION_NAME}").'
            )
        path = None if pretrained_model_name_or_path is None else str(pretrained_model_name_or_path)
        with_info = kwargs.pop("output_loading_info", False)
        with readable_errors(path, in_pipeline=PIPELINE_KEYWORD in kwargs):
            loaded = load_decoder(path, config, model_args, kwargs)
            model = cls(loaded.config, loaded.backbone)
            model.check()
            if loaded.adapter is not None:
                model.load_adapter(loaded.adapter, adapter_kwargs=loaded.adapter_keywords)
        model.eval()
        return (model, loaded.info) if with_info else model

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
        """Writes the decoder's own shards and keys (with adapters those alone), and our config.json.

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
        save_decoder(
            self.config,
            self.backbone,
            str(save_directory),
            is_main_process=is_main_process,
            state_dict=state_dict,
            include_code=include_code,
            **kwargs,
        )

    def push_to_hub(self, repo_id: str, *, include_code: bool = True, **kwargs: Any) -> CommitInfo:
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

    def load_state_dict(
        self, state_dict: Mapping[str, torch.Tensor], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Loads weights under this model's keys or the decoder's own."""
        ours = any(name.startswith(BACKBONE) for name in state_dict)
        load = super().load_state_dict if ours else self.backbone.load_state_dict
        result: _IncompatibleKeys = load(state_dict, strict=strict, assign=assign)
        return result

    def load_adapter(self, peft_model_id: str | None = None, adapter_name: str | None = None, **kwargs: Any) -> Any:
        """Loads a PEFT adapter onto the decoder, as transformers' method; errors as `adapters.load_adapter`."""
        return load_adapter(self.backbone, peft_model_id, adapter_name, **kwargs)

    def add_adapter(self, adapter_config: object, adapter_name: str | None = None) -> None:
        """Adds a new PEFT adapter to the decoder and activates it; see `adapters.add_adapter`."""
        add_adapter(self.backbone, adapter_config, adapter_name)

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Activates one of the loaded adapters, or several."""
        set_adapter(self.backbone, adapter_name)

    def delete_adapter(self, adapter_names: str | list[str]) -> None:
        """Removes one of the adapters, or several."""
        delete_adapter(self.backbone, adapter_names)

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: dict[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Returns the weights of an adapter, by default of the active one; see `adapters.adapter_state`."""
        return adapter_state(self.backbone, adapter_name, state_dict)

    def disable_adapters(self) -> None:
        """Switches all adapters off."""
        enable_adapters(self.backbone, False)

    def enable_adapters(self) -> None:
        """Switches the adapters on again."""
        enable_adapters(self.backbone, True)

    def active_adapters(self) -> list[str]:
        """Returns the names of the active adapters."""
        return active_adapters(self.backbone)

    def check(self) -> None:
        """Probes the backbone: raises a ValueError if packed scores would not equal the model's own."""
        if input_device(self.backbone).type == "meta":  # no weights yet
            return
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            check_backbone(self.backbone)
            self.row_head = row_head_equals_native(self.backbone)
        finally:
            self.backbone.train(was_training)

    def get_input_embeddings(self) -> nn.Embedding:
        """Returns the decoder's token embedding."""
        result: nn.Embedding = self.backbone.get_input_embeddings()
        return result

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the decoder's token embedding."""
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Returns the decoder's head."""
        result: nn.Module = self.backbone.get_output_embeddings()
        return result

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the decoder's head."""
        self.backbone.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: object, **kwargs: object) -> nn.Embedding:
        """Resizes the decoder's vocabulary, as transformers' method; `config.text_config` and prefixes kept follow."""
        result: nn.Embedding = self.backbone.resize_token_embeddings(*args, **kwargs)
        return result

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        subtree_end: torch.Tensor | None = None,
        span_nodes: torch.Tensor | None = None,
        symbol_token_ids: torch.Tensor | None = None,
        span_prompts: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        prefix_cache: DualBufferCache | None = None,
        attention_mask: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """Runs one packed pass; without `subtree_end` the decoder's ordinary forward, with the decoder's own output.

        Args:
            input_ids: int64 [1, N], the forest's tokens.
            position_ids: int64 [N] or [1, N].
            subtree_end: int32 [N] or [1, N], index of each node's last descendant, inclusive.
            span_nodes: int64 [S] or [1, S].
            symbol_token_ids: int64 [L], or [Q, L] for Q prompts, rows of fewer symbols padded with -1.
            span_prompts: int64 [S] or [1, S], each span's row of `symbol_token_ids`; None where there is one.
            labels: int64 [S] or [1, S], each span's gold column of `symbol_token_ids`; 0 is None, -100 is left out.
            prefix_cache: a prefix from `encode_prefix`; read, not written.
            attention_mask: for the ordinary forward only.
            num_items_in_batch: what the summed loss is divided by; the number of spans with labels > 0 if None.
            **kwargs: handed to the decoder; in the ordinary forward `cache` and `past_key_values` are one. A packed
                pass takes `output_hidden_states` and `return_dict` too.

        Returns:
            `SpanClassifierOutput`, or the decoder's output without `subtree_end`; a tuple with `return_dict=False`.

        Raises:
            ValueError: inputs that do not fit each other or the model, or `output_attentions` in a packed pass.
        """
        if subtree_end is None:
            if span_nodes is not None or symbol_token_ids is not None or prefix_cache is not None:
                raise ValueError(
                    "span_nodes, symbol_token_ids and prefix_cache belong to a packed pass: give subtree_end too."
                )
            return self._ordinary_forward(
                labels,
                num_items_in_batch,
                kwargs | {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": attention_mask},
            )
        as_dict = packed_options(kwargs, self.config)
        if input_ids is None or position_ids is None or span_nodes is None or symbol_token_ids is None:
            raise ValueError("a packed pass needs input_ids, position_ids, subtree_end, span_nodes, symbol_token_ids.")
        metadata = pass_metadata(self, position_ids.reshape(-1), subtree_end.reshape(-1), prefix_cache)
        symbols = symbol_token_ids.reshape(-1, symbol_token_ids.shape[-1])
        if symbols.shape[0] > 1 and span_prompts is None:
            raise ValueError(
                f"{symbols.shape[0]} rows of symbol_token_ids were given: span_prompts must say whose is whose."
            )
        span_pass = SpanPass(input_ids.reshape(-1), metadata, span_nodes.reshape(-1), symbols, span_prompts)
        scored = run_span_pass(self, span_pass, **kwargs)
        logits, loss = scored.logits, None
        assert logits is not None
        if labels is None and num_items_in_batch is not None and bool((symbols < 0).any()):
            raise ValueError(
                "symbol_token_ids has rows padded with -1, whose logits are -inf, and num_items_in_batch came without "
                "labels: a Trainer with label_smoothing_factor would get an infinite loss. Leave it at 0, or give all "
                "prompts the same number of symbols."
            )
        if labels is not None:
            loss = span_loss(logits, labels.to(logits.device), num_items_in_batch)
        output = SpanClassifierOutput(loss, logits.reshape(*span_nodes.shape, -1), scored.hidden_states)
        return output if as_dict else output.to_tuple()

    def _ordinary_forward(
        self,
        labels: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
        inputs: dict[str, Any],
    ) -> ModelOutput | tuple[Any, ...]:
        """Runs the decoder's own forward on `inputs`."""
        if not self.has_ordinary_forward:
            raise ValueError(
                'this model scores spans and labels no tokens: use pipeline("decodner-ner", model=...) in place '
                'of pipeline("ner") and pipeline("token-classification").'
            )
        if num_items_in_batch is not None:
            if labels is None:
                raise ValueError(
                    "num_items_in_batch was given without labels: a Trainer with label_smoothing_factor or a loss "
                    "function of its own keeps them and would not shift them for this model; train model.backbone "
                    "for ordinary language modelling."
                )
            inputs["num_items_in_batch"] = num_items_in_batch
        for name in ("cache", "past_key_values"):  # one argument; transformers renamed it
            if inputs.get(name) is not None:
                inputs[cache_keyword(self.backbone)] = inputs.pop(name)
        output: ModelOutput | tuple[Any, ...] = self.backbone(labels=labels, **inputs)
        return output

    def compile_forest(self, *, cuda_graph_nodes: int = 16384, **options: object) -> None:
        """Compiles the decoder's layers for passes without gradients over a cached prefix; call it when loaded.

        Call it again after the model was moved or cast, or its layers or adapters changed. A CUDA graph never runs
        over weights that were replaced, and what was compiled for another dtype or device is not used.
        Takes some ten seconds for each kind of layer, now; no pass of any size compiles again. Span passes over up to
        4,096 prefix tokens run as CUDA graphs, where the decoder allows it: the second pass of each size (a multiple
        of 64 to 512 nodes) is captured and takes a few times as long, later ones cost the host next to nothing. Larger
        passes, which keep the device busy longer than the host needs to launch them, run without: beyond 3,500 nodes
        with 7 billion weights in the layers, all experts counted, 25,000 with one. See `SpanPassGraphs` for the memory
        that graphs hold, and `WeightsWatch` for what changes of the model they notice by themselves.
        Hooks of the decoder's modules do not run where a graph is replayed; under autocast none is.
        Results stay within the dtype's rounding.

        Args:
            cuda_graph_nodes: nodes of the largest pass that gets a CUDA graph; 0 for none.
            **options: handed to `torch.compile` (mode, backend, options).

        Raises:
            ValueError: no GPU or no Triton, a model whose attention the fused kernel does not serve, or one that is
                spread over devices; fewer than 0 nodes.
        """
        compile_model(self, cuda_graph_nodes, **options)

    @without_gradients
    def encode_prefix(self, token_ids: TokenIds, cache: DualBufferCache | None = None) -> DualBufferCache:
        """Encodes tokens after the prefix that `cache` holds, so that spans can be scored against both.

        Args:
            token_ids: [P] or [1, P] integers.
            cache: grown by these tokens; a new one if None.

        Returns:
            The cache. Where the pass fails, what it held before is unchanged.

        Raises:
            ValueError: no token, more than one row, a token outside the vocabulary, more tokens than the cache or the
                model can hold, or a cache of another model.
        """
        return extend_prefix(self, token_ids, cache)

    @without_gradients
    def score_forest(
        self, forest: TokenForest, symbol_token_ids: TokenIds, cache: DualBufferCache | None = None
    ) -> torch.Tensor:
        """Scores all spans of a forest in one pass.

        Args:
            forest: from `build_forest`, its `first_position` the length of the cached prefix.
            symbol_token_ids: [L] integers, the label symbols' token ids.
            cache: from `encode_prefix`; read, not written. None where the forest holds the whole prompt.

        Returns:
            Label logits [S, L], in the order of the forest's spans.

        Raises:
            ValueError: no spans, positions that do not fit the prefix or the model, symbols that share a token or lie
                outside the vocabulary, or a cache of another model.
        """
        return forest_logits(self, forest, symbol_token_ids, cache)

    @without_gradients
    def score_rows(
        self, rows: GrownRows, symbol_token_ids: TokenIds, cache: DualBufferCache, kept_rows: KeptRows
    ) -> torch.Tensor:
        """Scores the spans of a round of growth, and keeps its rows for the rounds after it.

        Args:
            rows: from `GrowingForest`, its `first_position` the length of the cached prefix.
            symbol_token_ids: [L] integers, the token ids whose logits are wanted.
            cache: from `encode_prefix`; read, not written.
            kept_rows: those of the rounds before; grows by this round's rows.

        Returns:
            Logits [K, L] of the round's spans.

        Raises:
            ValueError: positions that do not fit the model, or a token outside the vocabulary.
        """
        return round_logits(self, rows, symbol_token_ids, cache, kept_rows)


class DecodNERForTokenClassification(DecodNERForSpanClassification, GenerationMixin):
    """The same model as `AutoModelForTokenClassification` gives it: it says that it cannot label tokens one by one.

    Without it `pipeline("ner")` would take the decoder's next-token logits for labels. It names `GenerationMixin`
    again because transformers looks for it among the direct bases of remote classes.
    """

    has_ordinary_forward = False
