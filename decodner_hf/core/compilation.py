"""Compiles a model's decoder layers and prepares CUDA graphs of its span passes.

In: a loaded model on a GPU. Out: the same model, faster. Packed passes over a cached prefix run each layer as one
compiled graph around the attention kernel; what a layer needs of the pass reaches its graph as tensors, so that
neither a layer's number nor a document's size is compiled in. Passes that neither serves run as before.
Knows nothing of labels or text.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol, TypeVar, TypeVarTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from .attention import HAS_KERNEL
from .attention_metadata import AttentionMetadata, LayerInputs
from .block_map import TileShape, make_block_map
from .cache import DualBufferCache
from .compatibility import PositionLimit, TokenIds, input_device, layer_windows
from .cuda_graphs import SpanPassGraphs, never_waits
from .forest import TokenForest, rows_forest
from .label_head import decoder_layers, last_hidden_states
from .layer_window import LayerWindow
from .static_inputs import PREFIX_SIZES
from .transfers import is_out_of_memory

if HAS_KERNEL:
    from .attention_triton import kernel_config

PROBE_TOKENS = 3
Derived = TypeVar("Derived")
Arguments = TypeVarTuple("Arguments")
Method = TypeVar("Method", bound=Callable[..., Any])
WARM_UP_PREFIX = 101  # tokens; no two sizes of the pass that a graph is made for may be equal
WARM_UP_SPANS = (137, 11)  # rows and their tokens
WARM_UP_LENGTH = 8
GRAPH_WORK = 2.5e13  # nodes x weights; the device needs some 70 ms for more, in which the host launches any decoder
LEAST = 2  # torch.compile makes a graph of its own for a size of 0 or 1


def without_gradients(method: Method) -> Method:
    """Runs a method without gradients, but not in the caller's inference mode: layers would be compiled anew in it."""
    return torch.inference_mode(False)(torch.no_grad()(method))


class ForestModel(Protocol):
    """The passes and limits of a model, as far as compiling it needs them."""

    backbone: PreTrainedModel
    graphs: SpanPassGraphs | None
    node_limit: int | None
    position_limit: PositionLimit | None

    def encode_prefix(self, token_ids: TokenIds, cache: DualBufferCache | None = None) -> DualBufferCache:
        """Encodes a prefix."""

    def score_forest(
        self, forest: TokenForest, symbol_token_ids: TokenIds, cache: DualBufferCache | None = None
    ) -> torch.Tensor:
        """Scores the spans of a forest."""


def compile_model(model: ForestModel, cuda_graph_nodes: int, **options: object) -> None:
    """Compiles the decoder's layers and prepares CUDA graphs, in place: see `compile_forest` of the model class.

    Args:
        model: a loaded model; its `graphs` are set where its decoder allows graphs.
        cuda_graph_nodes: nodes of the largest pass that gets a CUDA graph; 0 for none.
        **options: handed to `torch.compile` (mode, backend, options, fullgraph).

    Raises:
        ValueError: see `compile_layers`; fewer than 0 nodes.
    """
    if cuda_graph_nodes < 0:
        raise ValueError(f"cuda_graph_nodes must be at least 0, for no CUDA graphs, not {cuda_graph_nodes}.")
    if model.graphs is not None:
        model.graphs.release()
        model.graphs = None
    calls = compile_layers(model.backbone, **options)
    score_rows(model, WARM_UP_PREFIX, *WARM_UP_SPANS)
    on_gpu = input_device(model.backbone).type == "cuda"
    cuda_graph_nodes = min(cuda_graph_nodes, most_graph_nodes(decoder_layers(model.backbone)))
    if on_gpu and cuda_graph_nodes and never_waits(lambda: score_rows(model, WARM_UP_PREFIX, *WARM_UP_SPANS)):
        kinds = {(call.window, call.shape) for call in calls}
        model.graphs = SpanPassGraphs(model.backbone, cuda_graph_nodes, kinds)
        warm_up_graphs(model, min(model.graphs.most_nodes, model.node_limit or model.graphs.most_nodes))


def most_graph_nodes(layers: Sequence[nn.Module]) -> int:
    """Nodes of the largest pass that the device does before the host could have launched it without a graph."""
    weights = sum(weight.numel() for layer in layers for weight in layer.parameters())
    return int(GRAPH_WORK / max(weights, 1))  # quantized weights may be buffers


def warm_up_graphs(model: ForestModel, largest: int) -> None:
    """Captures a pass of `largest` nodes before all others, which then fit into the memory it takes."""
    score_rows(model, 4 * PREFIX_SIZES[0], 1, WARM_UP_LENGTH)  # few nodes, a long prefix: split among programs
    try:
        for _ in range(2):  # the second of a size is captured
            score_rows(model, WARM_UP_PREFIX, largest // WARM_UP_LENGTH, WARM_UP_LENGTH)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        torch.cuda.empty_cache()  # smaller passes may fit, and have graphs


def score_rows(model: ForestModel, prefix_length: int, rows: int, length: int) -> None:
    """Scores `rows` chains of `length` arbitrary tokens, if the model has positions for them."""
    if model.position_limit is not None and prefix_length + length > model.position_limit.limit:
        return
    vocabulary = model.backbone.get_input_embeddings().weight.shape[0]
    token_ids = torch.arange(max(rows * length, prefix_length)) % vocabulary
    cache = model.encode_prefix(token_ids[:prefix_length])
    forest = rows_forest(token_ids[: rows * length].reshape(rows, length), prefix_length)
    model.score_forest(forest, torch.arange(2), cache)


@dataclass(frozen=True)
class LayerCall:
    """A decoder layer's one attention call.

    Attributes:
        layer_idx: the layer's number in the cache.
        window: what its positions may see.
        shape: tile sizes of the kernel.
        config: the kernel's settings, the fields of its `KernelConfig`.
        kept: key/value heads, head size, dtype and device of the layer's keys.
    """

    layer_idx: int
    window: LayerWindow
    shape: TileShape
    config: tuple[int, ...]
    kept: tuple[int, int, torch.dtype, torch.device]

    def inputs(self, metadata: AttentionMetadata) -> LayerInputs | None:
        """What the layer reads of a pass; None without a cached prefix, for a single row, or for other dtypes."""
        if metadata.cache is None or metadata.prefix_length < LEAST or metadata.num_nodes < LEAST:
            return None
        if 0 < metadata.num_kept < LEAST:
            return None
        prefix_key, prefix_value = metadata.cache.read_prefix(self.layer_idx, 0)
        if _kind(prefix_key) != self.kept:
            return None
        block_map = metadata.once(make_block_map, self.window, self.shape, prefix_key.device)
        return LayerInputs(
            prefix_key=prefix_key.data,  # not known as a view: a graph would depend on the size of the whole buffer
            prefix_value=prefix_value.data,
            tables=block_map.tables,
            limited=block_map.limited,
            config=self.config,
            kept=self._kept(metadata),
        )

    def _kept(self, metadata: AttentionMetadata) -> tuple[torch.Tensor, torch.Tensor] | None:
        if metadata.kept_rows is None or not metadata.num_kept:
            return None
        key, value = metadata.kept_rows.read(self.layer_idx, 0)
        return key.data, value.data


class CompiledLayer:
    """Stands in for a decoder layer's `forward`; what its graph does not cover runs as before."""

    def __init__(self, layer: nn.Module, call: LayerCall, run: Callable[..., object]) -> None:
        """Takes the layer, its attention call, and the compiled `forward` of its class."""
        self.layer, self.call, self.run = layer, call, run
        self.uncompiled = layer.forward

    def __call__(self, *args: object, **kwargs: object) -> object:
        """As the layer's `forward`."""
        metadata = cast(AttentionMetadata | None, kwargs.get("forest_metadata"))
        inputs = None if metadata is None or torch.is_grad_enabled() else self.call.inputs(metadata)
        if metadata is None or inputs is None:
            return self.uncompiled(*args, **kwargs)
        metadata.next_call(self.call.layer_idx)
        states = self.run(self.layer, *args, **(kwargs | {"forest_metadata": None, "forest_layer": inputs}))
        if metadata.write and metadata.cache is not None:
            metadata.cache.write_prefix(self.call.layer_idx, 0, *inputs.computed[0])
        if metadata.kept_rows is not None:
            metadata.kept_rows.write(self.call.layer_idx, 0, *inputs.computed[0])
        return states


@dataclass
class _RecordingMetadata(AttentionMetadata):
    """Notes which block maps the layers asked for, in their order."""

    asked: list[tuple[LayerWindow, TileShape, object]] = field(default_factory=list)

    def once(self, derive: Callable[[AttentionMetadata, *Arguments], Derived], *arguments: *Arguments) -> Derived:
        if cast(object, derive) is make_block_map:
            self.asked.append(cast(tuple[LayerWindow, TileShape, object], arguments))
        return super().once(derive, *arguments)


def compile_layers(backbone: PreTrainedModel, **options: Any) -> list[LayerCall]:
    """Gives every decoder layer a compiled forward for packed passes over a cached prefix; nothing is compiled yet.

    Args:
        backbone: a native causal LM under the "decodner" attention; layers that are compiled already are so anew.
        **options: handed to `torch.compile` (mode, backend, options, fullgraph).

    Returns:
        The layers' attention calls.

    Raises:
        ValueError: no GPU or Triton, layers that are not one kernel call each, or are spread over devices.
    """
    name = type(backbone).__name__
    layers = decoder_layers(backbone)
    for layer in layers:
        if isinstance(vars(layer).get("forward"), CompiledLayer):
            del layer.forward
    if any("forward" in vars(layer) for layer in layers):
        raise ValueError(
            f"the layers of this {name} are spread over several devices or wrapped by something else, which compiled "
            "layers cannot be: load the model onto one GPU."
        )
    calls = attention_calls(backbone)
    if len(layers) != len(calls):
        raise ValueError(
            f"{name} has {len(layers)} layers with {len(calls)} attention calls that the kernel serves: compilation "
            "needs a GPU, Triton 3.6 or later, and one such call a layer. Leave it out here."
        )
    compiled = {
        kind: torch.compile(kind.forward, dynamic=True, **options) for kind in {type(layer) for layer in layers}
    }
    for layer, call in zip(layers, calls, strict=True):
        layer.forward = CompiledLayer(layer, call, compiled[type(layer)])
    return calls


@torch.no_grad()
def attention_calls(backbone: PreTrainedModel) -> list[LayerCall]:
    """Runs a few tokens and returns the kernel calls that the layers made, in their order; none where some differ."""
    config = backbone.config.get_text_config(decoder=True)
    device = backbone.get_input_embeddings().weight.device
    cache = DualBufferCache()
    metadata = _RecordingMetadata(
        torch.arange(PROBE_TOKENS),
        torch.full((PROBE_TOKENS,), PROBE_TOKENS - 1, dtype=torch.int32),
        cache=cache,
        write=True,
        layer_windows=layer_windows(config),
    )
    positions = metadata.position_ids.to(device)
    last_hidden_states(backbone, positions, positions, metadata)
    cache.commit(PROBE_TOKENS)
    if any(count > 1 for count in metadata.calls.values()) or len(metadata.asked) != len(metadata.calls):
        return []
    calls = []
    for layer_idx, (window, shape, _) in zip(metadata.calls, metadata.asked, strict=True):
        key, value = cache.read_prefix(layer_idx, 0)
        settings = kernel_config(key.dtype, key.shape[3], value.shape[3], key.device)
        config_fields = tuple(int(setting) for setting in astuple(settings))
        calls.append(LayerCall(layer_idx, window, shape, config_fields, _kind(key)))
    return calls


def _kind(key: torch.Tensor) -> tuple[int, int, torch.dtype, torch.device]:
    return key.shape[1], key.shape[3], key.dtype, key.device
