"""The model: a causal decoder of transformers that scores a token forest over a cached prefix.

In: token ids, positions and tree structure. Out: logits of the label symbols at every span, [S, L].
The decoder is a native class of transformers, loaded, sharded, quantized and saved by its own code; only its attention
function is ours. Knows nothing of text: tokenizers, prompts and entities are the pipeline's.
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from .attention import ATTENTION_NAME
from .attention_metadata import AttentionMetadata
from .cache import DualBufferCache
from .checks import InputChecks
from .compatibility import (
    check_backbone,
    input_device,
    layer_windows,
    native_class,
    node_limit,
    packed_arguments,
    position_limit,
)
from .compilation import compile_model, without_gradients
from .configuration import DecodNERConfig
from .cuda_graphs import SpanPassGraphs
from .forest import TokenForest, build_forest
from .label_head import has_plain_head, last_hidden_states, row_head_equals_native, row_logits
from .loss import span_loss
from .padded_spans import PaddedSpanMethods
from .persistence import CheckpointMethods
from .transfers import copy_to_device

FORWARDED = (
    *("hf_device_map", "hf_quantizer", "is_quantized", "quantization_method", "generation_config"),
    *("is_loaded_in_4bit", "is_loaded_in_8bit", "_tp_size", "_tp_plan"),
)


@dataclass
class SpanClassifierOutput(ModelOutput):
    """What a packed forward returns.

    Attributes:
        loss: cross-entropy over each prompt's label symbols, summed over spans and divided by the gold spans; None
            where no labels were given.
        logits: [S, L], the label symbols' next-token logits at each span; -inf where a prompt has fewer symbols.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class DecodNERForSpanClassification(CheckpointMethods, PaddedSpanMethods, InputChecks, PreTrainedModel):
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

    def __init__(self, config: DecodNERConfig, backbone: PreTrainedModel | None = None) -> None:
        """Wraps `backbone`, whose attention must be "decodner" already, or a new random one by `config.text_config`.

        To wrap a model of your own use `from_backbone`.
        """
        if config.text_config is None:
            raise ValueError("the config has no text_config: say which decoder to use, or call from_pretrained.")
        native = native_class(config.text_config)
        config._attn_implementation_internal = ATTENTION_NAME
        super().__init__(config)
        if backbone is None:
            backbone = native._from_config(config.text_config, attn_implementation=ATTENTION_NAME)
        self.backbone = backbone
        config.text_config = backbone.config
        self.position_limit = position_limit(self._decoder_config)
        self.node_limit = node_limit(self._decoder_config)
        self.layer_windows = layer_windows(self._decoder_config)
        self.row_head = has_plain_head(backbone)
        self.graphs: SpanPassGraphs | None = None
        for name in FORWARDED:
            if hasattr(backbone, name):
                setattr(self, name, getattr(backbone, name))
        self.post_init()

    def init_weights(self) -> None:
        """Does nothing: the backbone initialised or loaded its own weights."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves or casts the weights; none of them stays behind where they were because a graph reads them."""
        if self.graphs is not None:
            self.graphs.release()
        return super()._apply(fn, recurse)

    @property
    def _decoder_config(self) -> Any:
        return self.backbone.config.get_text_config(decoder=True)

    @classmethod
    def from_backbone(cls, model: PreTrainedModel, config: DecodNERConfig | None = None) -> Any:
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
        own_config = DecodNERConfig() if config is None else copy.deepcopy(config)
        own_config.text_config = backbone.config
        own_config.name_or_path = own_config.name_or_path or model.config.name_or_path
        wrapped = cls(own_config, backbone)
        wrapped.check()
        wrapped.train(model.training)
        return wrapped

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

    def get_input_embeddings(self) -> Any:
        """The decoder's token embedding."""
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The decoder's head."""
        return self.backbone.get_output_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        subtree_end: torch.Tensor | None = None,
        span_nodes: torch.Tensor | None = None,
        symbol_token_ids: torch.Tensor | None = None,
        span_prompts: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cache: DualBufferCache | None = None,
        attention_mask: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """One packed pass; without `subtree_end` the decoder's ordinary forward, with the decoder's own output.

        Args:
            input_ids: int64 [1, N], the forest's tokens.
            position_ids: int64 [N] or [1, N].
            subtree_end: int32 [N] or [1, N], index of each node's last descendant, inclusive.
            span_nodes: int64 [S] or [1, S].
            symbol_token_ids: int64 [L], or [Q, L] for Q prompts, rows of fewer symbols padded with -1.
            span_prompts: int64 [S] or [1, S], each span's row of `symbol_token_ids`; None where there is one.
            labels: int64 [S] or [1, S], each span's gold column of `symbol_token_ids`; 0 is None, -100 is left out.
            cache: a prefix from `encode_prefix`; read, not written.
            attention_mask: for the ordinary forward only.
            num_items_in_batch: what the summed loss is divided by; the number of spans with labels > 0 if None.
            **kwargs: handed to the decoder.

        Returns:
            `SpanClassifierOutput`, or the decoder's output without `subtree_end`.
        """
        if subtree_end is None:
            if num_items_in_batch is not None:
                kwargs["num_items_in_batch"] = num_items_in_batch
            if span_nodes is not None or symbol_token_ids is not None or cache is not None:
                raise ValueError(
                    "span_nodes, symbol_token_ids and cache belong to a packed pass: give subtree_end too."
                )
            ordinary = {"position_ids": position_ids, "attention_mask": attention_mask, "labels": labels}
            return self.backbone(input_ids=input_ids, **ordinary, **kwargs)
        if input_ids is None or position_ids is None or span_nodes is None or symbol_token_ids is None:
            raise ValueError("a packed pass needs input_ids, position_ids, subtree_end, span_nodes, symbol_token_ids.")
        kwargs.pop("use_cache", None)
        kwargs.pop("return_dict", None)
        plan = self._plan(position_ids.reshape(-1), subtree_end.reshape(-1), cache)
        symbols = symbol_token_ids.reshape(-1, symbol_token_ids.shape[-1])
        if symbols.shape[0] > 1 and span_prompts is None:
            raise ValueError(
                f"{symbols.shape[0]} rows of symbol_token_ids were given: span_prompts must say whose is whose."
            )
        logits = self._label_logits(input_ids.reshape(-1), plan, span_nodes.reshape(-1), symbols, span_prompts, kwargs)
        loss = None
        if labels is not None:
            loss = span_loss(logits, labels.reshape(-1).to(logits.device), num_items_in_batch)
        return SpanClassifierOutput(loss=loss, logits=logits)

    def compile_forest(self, *, cuda_graph_nodes: int = 16384, **options: Any) -> None:
        """Compiles the decoder's layers for passes without gradients over a cached prefix; call it when loaded.

        Call it again after the model was moved or cast, or its layers or adapters changed: a CUDA graph never runs over
        weights that were replaced, and what was compiled for another dtype or device is not used.
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
    def encode_prefix(self, token_ids: Any, cache: DualBufferCache | None = None) -> DualBufferCache:
        """Encodes tokens behind the prefix that `cache` holds, so that spans can be scored against both.

        Args:
            token_ids: [P] or [1, P] integers.
            cache: grown by these tokens; a new one if None.

        Returns:
            The cache. Where the pass fails, what it held before is unchanged.

        Raises:
            ValueError: no token, more than one row, a token outside the vocabulary, more tokens than the cache or the
                model can hold, or a cache of another model.
        """
        prefix = torch.as_tensor(token_ids).cpu()
        if prefix.dim() > 1 and prefix.shape[0] > 1:
            raise ValueError(f"{prefix.shape[0]} prefixes were given: a cache holds one; encode each into its own.")
        if not prefix.numel():
            raise ValueError("the prefix is empty: give at least one token.")
        checked = self._checked_ids(prefix.reshape(-1))
        forest = build_forest(
            [prefix.reshape(-1).numpy()], first_position=cache.prefix_length if cache is not None else 0
        )
        cache = DualBufferCache() if cache is None else cache
        cache.check_fits(forest.num_nodes)
        if not cache.prefix_length:
            cache.claim(self.backbone)
        plan = self._plan(forest.position_ids, forest.subtree_end, cache, write=True)
        checked, position_ids = copy_to_device([checked, plan.position_ids], input_device(self.backbone))
        last_hidden_states(self.backbone, checked, position_ids, plan)
        cache.commit(forest.num_nodes)
        return cache

    @without_gradients
    def score_forest(
        self, forest: TokenForest, symbol_token_ids: Any, cache: DualBufferCache | None = None
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
        if not forest.num_spans:
            raise ValueError("the forest has no spans to score.")
        symbols = self._checked_ids(torch.as_tensor(symbol_token_ids).reshape(-1).cpu(), "label token ids")
        if len(set(symbols.tolist())) != symbols.numel():
            raise ValueError(f"label token ids {symbols.tolist()} are not distinct: two labels would share a token.")
        plan = self._plan(forest.position_ids, forest.subtree_end, cache)
        return self._label_logits(
            self._checked_ids(forest.token_ids.cpu()), plan, forest.span_nodes.cpu(), symbols[None], None, {}
        )

    def _plan(
        self,
        position_ids: torch.Tensor,
        subtree_end: torch.Tensor,
        cache: DualBufferCache | None,
        write: bool = False,
    ) -> AttentionMetadata:
        prefix_length = cache.prefix_length if cache is not None else 0
        plan = AttentionMetadata(
            position_ids=position_ids.cpu(),
            subtree_end=subtree_end.cpu(),
            prefix_length=prefix_length,
            cache=cache,
            write=write,
            layer_windows=self.layer_windows,
        )
        if self.backbone.config._attn_implementation != ATTENTION_NAME:
            raise ValueError(
                f"the decoder's attention was set to {self.backbone.config._attn_implementation!r}, which knows no "
                f'forests: set it back with model.backbone.set_attn_implementation("{ATTENTION_NAME}").'
            )
        if cache is not None and not cache.belongs_to(self.backbone):
            raise ValueError("the cache holds a prefix of another model: encode the prefix with this model.")
        self._check_structure(plan)
        return plan

    def _label_logits(
        self,
        token_ids: torch.Tensor,
        plan: AttentionMetadata,
        span_nodes: torch.Tensor,
        symbols: torch.Tensor,
        span_prompts: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """[N], spans [S], symbols [Q, L] padded with -1 -> [S, L]; no wait for the GPU if all are on the CPU."""
        if token_ids.numel() != plan.position_ids.numel():
            raise ValueError(f"{token_ids.numel()} tokens for {plan.position_ids.numel()} nodes: one each is needed.")
        if span_nodes.device.type == "cpu" and span_nodes.numel():
            first, last = span_nodes.aminmax()
            if first < 0 or last >= token_ids.numel():
                raise ValueError(f"span_nodes must lie in 0 .. {token_ids.numel() - 1}.")
        if self.graphs is not None and self.row_head and not kwargs and span_prompts is None:
            replayed = self.graphs.logits(plan, token_ids, span_nodes, symbols)
            if replayed is not None:
                return replayed
        rows, columns = symbols.clamp(min=0).reshape(-1).unique(return_inverse=True)
        columns, absent = columns.reshape(symbols.shape), symbols < 0
        token_ids, position_ids, span_nodes, rows, columns, absent = copy_to_device(
            [token_ids, plan.position_ids, span_nodes, rows, columns, absent], input_device(self.backbone)
        )
        if self.row_head and has_plain_head(self.backbone):
            states = last_hidden_states(self.backbone, token_ids, position_ids, plan, **kwargs)
            logits = row_logits(self.backbone, states[span_nodes.to(states.device)], rows)
        else:
            packed = packed_arguments(position_ids[None], plan)
            native = self.backbone(input_ids=token_ids[None], logits_to_keep=span_nodes, **packed, **kwargs).logits[0]
            logits = native[:, rows.to(native.device)]
        columns, absent = columns.to(logits.device), absent.to(logits.device, torch.bool)
        if span_prompts is None:
            return logits[:, columns[0]].masked_fill(absent[0], float("-inf"))
        prompts = span_prompts.reshape(-1).to(logits.device)
        return logits.gather(1, columns[prompts]).masked_fill(absent[prompts], float("-inf"))


UniversalDecoder = DecodNERForSpanClassification
