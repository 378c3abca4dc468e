"""The model: a causal decoder of transformers that scores a token forest over a cached prefix.

In: token ids, positions and tree structure. Out: logits of the label symbols at every span, [S, L].
The decoder is a native class of transformers, loaded, sharded, quantized and saved by its own code; only its attention
function is ours. Knows nothing of text: tokenizers, prompts and entities are the pipeline's.
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from .attention_decodner import ATTENTION_NAME, ForestPlan
from .cache_decodner import DualBufferCache
from .compile_decodner import compile_layers
from .configuration_decodner import DecodNERConfig
from .forest_decodner import TokenForest, build_forest, rows_forest
from .graphs_decodner import PREFIX_SIZES, SpanPassGraphs, never_waits
from .guard_decodner import (
    check_backbone,
    input_device,
    layer_windows,
    native_class,
    node_limit,
    packed_arguments,
    position_limit,
)
from .head_decodner import has_plain_head, inner_decoder, row_head_equals_native, row_logits
from .persistence_decodner import CheckpointMethods
from .transfers_decodner import upload

FORWARDED = (
    *("hf_device_map", "hf_quantizer", "is_quantized", "quantization_method", "generation_config"),
    *("is_loaded_in_4bit", "is_loaded_in_8bit", "_tp_size", "_tp_plan"),
)
IGNORED_TARGET = -100
WARM_UP_PREFIX = 101  # tokens; no two sizes of the pass that a graph is made for may be equal
WARM_UP_SPANS = (137, 11)  # rows and their tokens
WARM_UP_LENGTH = 8


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


class DecodNERForSpanClassification(CheckpointMethods, PreTrainedModel):
    """Scores candidate spans with a causal decoder; see `encode_prefix` and `score_forest`.

    `from_pretrained` takes plain decoder checkpoints, adapters, and what `save_pretrained` wrote.
    """

    config_class = DecodNERConfig
    config: DecodNERConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["forest_plan"]

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

    @property
    def _decoder_config(self) -> Any:
        return self.backbone.config.get_text_config(decoder=True)

    # ------------------------------------------------------------------ wrapping and checking

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

    def compile_forest(self, *, cuda_graph_nodes: int = 16384, **options: Any) -> None:
        """Compiles the decoder's layers for passes without gradients over a cached prefix; call it once, when loaded.

        Takes some ten seconds for each kind of layer, now; no pass of any size compiles again. Span passes over up to
        4,096 prefix tokens run as CUDA graphs, where the decoder allows it: the second pass of each size (a multiple
        of 64 to 256 nodes) is captured and takes a few times as long, later ones cost the host next to nothing. See
        `SpanPassGraphs` for the memory that graphs hold.
        Results stay within the dtype's rounding. A model that is moved or cast afterwards runs uncompiled.

        Args:
            cuda_graph_nodes: nodes of the largest pass that gets a CUDA graph; 0 for none.
            **options: handed to `torch.compile` (mode, backend, options).

        Raises:
            ValueError: no GPU or no Triton, a model whose attention the fused kernel does not serve, or one that is
                compiled already or spread over devices.
        """
        compile_layers(self.backbone, **options)
        self._score_rows(WARM_UP_PREFIX, *WARM_UP_SPANS)
        on_gpu = input_device(self.backbone).type == "cuda"
        if on_gpu and cuda_graph_nodes and never_waits(lambda: self._score_rows(WARM_UP_PREFIX, *WARM_UP_SPANS)):
            self.graphs = SpanPassGraphs(self.backbone, cuda_graph_nodes)
            self._warm_up_graphs(min(self.graphs.most_nodes, self.node_limit or self.graphs.most_nodes))

    def _warm_up_graphs(self, largest: int) -> None:
        """Captures a pass of `largest` nodes before all others, which then fit into the memory it takes."""
        self._score_rows(4 * PREFIX_SIZES[0], 1, WARM_UP_LENGTH)  # few nodes, a long prefix: split among programs
        try:
            for _ in range(2):  # the second of a size is captured
                self._score_rows(WARM_UP_PREFIX, largest // WARM_UP_LENGTH, WARM_UP_LENGTH)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # smaller passes may fit, and have graphs

    def _score_rows(self, prefix_length: int, rows: int, length: int) -> None:
        """Scores `rows` chains of `length` arbitrary tokens, if the model has positions for them."""
        if self.position_limit is not None and prefix_length + length > self.position_limit.limit:
            return
        vocabulary = self.get_input_embeddings().weight.shape[0]
        token_ids = torch.arange(max(rows * length, prefix_length)) % vocabulary
        cache = self.encode_prefix(token_ids[:prefix_length])
        forest = rows_forest(token_ids[: rows * length].reshape(rows, length), prefix_length)
        self.score_forest(forest, torch.arange(2), cache)

    def get_input_embeddings(self) -> Any:
        """The decoder's token embedding."""
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The decoder's head."""
        return self.backbone.get_output_embeddings()

    # ------------------------------------------------------------------ forward

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
            loss = _span_loss(logits, labels.reshape(-1).to(logits.device), num_items_in_batch)
        return SpanClassifierOutput(loss=loss, logits=logits)

    @torch.no_grad()
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
        checked, position_ids = upload([checked, plan.position_ids], input_device(self.backbone))
        self._decode(checked, position_ids, plan, {})
        cache.commit(forest.num_nodes)
        return cache

    @torch.no_grad()
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
        if symbols.unique().numel() != symbols.numel():
            raise ValueError(f"label token ids {symbols.tolist()} are not distinct: two labels would share a token.")
        plan = self._plan(forest.position_ids, forest.subtree_end, cache)
        return self._label_logits(
            self._checked_ids(forest.token_ids.cpu()), plan, forest.span_nodes.cpu(), symbols[None], None, {}
        )

    # ------------------------------------------------------------------ the original low-level API

    def prefill_prefix(self, prefix_ids: Any, cache: DualBufferCache) -> DualBufferCache:
        """Replaces what `cache` holds by the prefix `prefix_ids` [P] or [1, P]; see `encode_prefix`."""
        self._checked_ids(torch.as_tensor(prefix_ids))
        cache.reset()
        return self.encode_prefix(prefix_ids, cache)

    @torch.no_grad()
    def forward_spans(
        self, span_ids: torch.Tensor, position_ids: torch.Tensor | None, cache: DualBufferCache
    ) -> torch.Tensor:
        """Next-token logits of a padded span batch behind the cached prefix; call it for each mini-batch.

        Args:
            span_ids: int64 [batch, span_len], right-padded.
            position_ids: int64 [batch, span_len], prefix length + 0 .. span_len - 1 in each row; None for just that.
            cache: from `prefill_prefix`; read, not written.

        Returns:
            [batch, span_len, vocabulary].

        Raises:
            ValueError: an empty batch, shapes or positions that do not fit, or spans longer than cache or model allow.
        """
        if span_ids.dim() != 2 or 0 in span_ids.shape:
            raise ValueError(f"span_ids must be [batch, span_len] with at least one span, not {list(span_ids.shape)}.")
        batch, length = span_ids.shape
        if cache.max_suffix_len is not None and length > cache.max_suffix_len:
            raise ValueError(
                f"the spans have {length} tokens, but this cache was made with max_suffix_len={cache.max_suffix_len}."
            )
        if cache.max_rows is not None and batch > cache.max_rows:
            raise ValueError(f"{batch} spans were given, but this cache was made with batch_size={cache.max_rows}.")
        token_ids = self._checked_ids(span_ids.reshape(-1))
        forest = rows_forest(span_ids.cpu(), cache.prefix_length)
        if position_ids is not None and not torch.equal(position_ids.cpu().reshape(-1), forest.position_ids):
            raise ValueError(
                f"position_ids must be the prefix length plus 0 .. span_len - 1 in each row, here "
                f"{cache.prefix_length} .. {cache.prefix_length + length - 1}; leave them out to have them made."
            )
        plan = self._plan(forest.position_ids, forest.subtree_end, cache)
        token_ids, positions = upload([token_ids, plan.position_ids], input_device(self.backbone))
        arguments = packed_arguments(positions[None], plan)
        logits: torch.Tensor = self.backbone(input_ids=token_ids[None], **arguments).logits
        return logits.reshape(batch, length, -1)

    def score_spans(
        self, prefix_ids: Any, span_ids: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`prefill_prefix` and `forward_spans` in one call: logits [batch, span_len, vocabulary]."""
        return self.forward_spans(span_ids, position_ids, self.prefill_prefix(prefix_ids, DualBufferCache()))

    # ------------------------------------------------------------------ inside

    def _plan(
        self,
        position_ids: torch.Tensor,
        subtree_end: torch.Tensor,
        cache: DualBufferCache | None,
        write: bool = False,
    ) -> ForestPlan:
        prefix_length = cache.prefix_length if cache is not None else 0
        plan = ForestPlan(
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

    def _check_structure(self, plan: ForestPlan) -> None:
        positions, ends = plan.position_ids, plan.subtree_end
        if positions.shape != ends.shape or not positions.numel():
            raise ValueError(f"{positions.numel()} position ids for {ends.numel()} nodes: one each, and at least one.")
        nodes = torch.arange(ends.numel())
        if bool(((ends < nodes) | (ends >= ends.numel())).any()):
            raise ValueError("subtree_end must lie between the node itself and the last node, inclusive.")
        closed = torch.bincount(ends.long() + 1, minlength=ends.numel())[: ends.numel()].cumsum(0)  # subtrees ended
        if not torch.equal(positions.long(), plan.prefix_length + nodes - closed):
            raise ValueError(
                f"position ids run from {int(positions.min())} to {int(positions.max())}, but the prefix has "
                f"{plan.prefix_length} tokens: a node's position is the prefix length plus its depth in the forest."
            )
        if self.node_limit is not None and ends.numel() > self.node_limit:
            raise ValueError(
                f"{ends.numel()} nodes were given, but this model scales its queries by their place in the row from "
                f"{self.node_limit} on: score at most {self.node_limit} nodes a pass."
            )
        limit, last = self.position_limit, int(positions.max())
        if limit is not None and last >= limit.limit:
            raise ValueError(
                f"prefix and spans reach position {last}, but only positions below {limit.limit} can be used: "
                f"{limit.reason}. Shorten the text or score it in windows."
            )

    def _checked_ids(self, token_ids: torch.Tensor, what: str = "token ids") -> torch.Tensor:
        """Returns `token_ids` as they are; a ValueError if one is not in the vocabulary."""
        if not token_ids.numel() or token_ids.is_floating_point():
            raise ValueError(
                f"{what} must be integers, at least one, not {token_ids.dtype} of {list(token_ids.shape)}."
            )
        vocabulary = self.get_input_embeddings().weight.shape[0]
        lowest, highest = int(token_ids.min()), int(token_ids.max())
        if lowest < 0 or highest >= vocabulary:
            raise ValueError(f"{what} run from {lowest} to {highest}, but the vocabulary is 0 .. {vocabulary - 1}.")
        return token_ids

    def _decode(
        self, token_ids: torch.Tensor, position_ids: torch.Tensor, plan: ForestPlan, kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """[N], [N] on the model's device -> the decoder's last hidden states [N, hidden size]."""
        decoder = inner_decoder(self.backbone)
        states: torch.Tensor = decoder(
            input_ids=token_ids[None], **packed_arguments(position_ids[None], plan), **kwargs
        ).last_hidden_state
        return states[0]

    def _label_logits(
        self,
        token_ids: torch.Tensor,
        plan: ForestPlan,
        span_nodes: torch.Tensor,
        symbols: torch.Tensor,
        span_prompts: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """[N], spans [S], symbols [Q, L] padded with -1 -> [S, L]; no wait for the GPU if all are on the CPU."""
        if token_ids.numel() != plan.position_ids.numel():
            raise ValueError(f"{token_ids.numel()} tokens for {plan.position_ids.numel()} nodes: one each is needed.")
        if span_nodes.device.type == "cpu" and not bool(((span_nodes >= 0) & (span_nodes < token_ids.numel())).all()):
            raise ValueError(f"span_nodes must lie in 0 .. {token_ids.numel() - 1}.")
        replayed = None if kwargs or span_prompts is not None else self._replay(token_ids, plan, span_nodes, symbols)
        if replayed is not None:
            return replayed
        rows, columns = symbols.clamp(min=0).reshape(-1).unique(return_inverse=True)
        columns, absent = columns.reshape(symbols.shape), symbols < 0
        token_ids, position_ids, span_nodes, rows, columns, absent = upload(
            [token_ids, plan.position_ids, span_nodes, rows, columns, absent], input_device(self.backbone)
        )
        if self.row_head and has_plain_head(self.backbone):
            states = self._decode(token_ids, position_ids, plan, kwargs)
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

    def _replay(
        self, token_ids: torch.Tensor, plan: ForestPlan, span_nodes: torch.Tensor, symbols: torch.Tensor
    ) -> torch.Tensor | None:
        """`_label_logits` by a CUDA graph; None where there is none for such a pass."""
        if self.graphs is None or plan.cache is None or self.training or torch.is_grad_enabled():
            return None
        on_cpu = all(tensor.device.type == "cpu" for tensor in (token_ids, span_nodes, symbols))
        whole = symbols.shape[0] == 1 and on_cpu and bool((symbols >= 0).all())
        if not whole or not self.row_head or not has_plain_head(self.backbone):
            return None
        return self.graphs.logits(self._node_logits, plan, token_ids, symbols[0], span_nodes)

    def _node_logits(
        self, token_ids: torch.Tensor, position_ids: torch.Tensor, plan: ForestPlan, rows: torch.Tensor
    ) -> torch.Tensor:
        """[N], [N], rows of the head [U], all on the model's device -> [N, U]."""
        return row_logits(self.backbone, self._decode(token_ids, position_ids, plan, {}), rows)


def _span_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Cross-entropy [S, L] against [S], summed, over the number of gold spans: None spans outnumber them by far."""
    summed = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_TARGET, reduction="sum")
    gold = (labels > 0).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return summed / gold


UniversalDecoder = DecodNERForSpanClassification
