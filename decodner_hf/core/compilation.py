"""Compiles a model's decoder layers and prepares CUDA graphs of its span passes.

In: a loaded model on a GPU. Out: the same model, faster. Packed passes over a cached prefix run each layer as one
compiled graph around the attention kernel; what a layer needs of the pass reaches its graph as tensors, so that
neither a layer's number nor a document's size is compiled in. Passes that neither serves run as before.
Knows nothing of labels or text.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from .attention import HAS_KERNEL
from .attention_metadata import ForestPlan, LayerWindow
from .block_map import KernelTiles, TileShape
from .cache import DualBufferCache
from .compatibility import PositionLimit, input_device, layer_windows
from .cuda_graphs import SpanPassGraphs, never_waits
from .forest import TokenForest, rows_forest
from .label_head import decoder_layers, last_hidden_states
from .static_inputs import PREFIX_SIZES
from .transfers import is_out_of_memory

if HAS_KERNEL:
    from .attention_triton import kernel_config

PROBE_TOKENS = 3
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

    def encode_prefix(self, token_ids: Any, cache: DualBufferCache | None = None) -> DualBufferCache:
        """Encodes a prefix."""

    def score_forest(
        self, forest: TokenForest, symbol_token_ids: Any, cache: DualBufferCache | None = None
    ) -> torch.Tensor:
        """Scores the spans of a forest."""


def compile_model(model: ForestModel, cuda_graph_nodes: int, **options: Any) -> None:
    """Compiles the decoder's layers and prepares CUDA graphs, in place: see `compile_forest` of the model class.

    Args:
        model: a loaded model; `graphs` is set where its decoder allows graphs.
        cuda_graph_nodes: nodes of the largest pass that gets a CUDA graph; 0 for none.
        **options: handed to `torch.compile` (mode, backend, options, fullgraph).

    Raises:
        ValueError: see `compile_layers`; fewer than 0 nodes.
    """
    if cuda_graph_nodes < 0:
        raise ValueError(f"cuda_graph_nodes must be at least 0, for no CUDA graphs, not {cuda_graph_nodes}.")
    compile_layers(model.backbone, **options)
    score_rows(model, WARM_UP_PREFIX, *WARM_UP_SPANS)
    on_gpu = input_device(model.backbone).type == "cuda"
    cuda_graph_nodes = min(cuda_graph_nodes, most_graph_nodes(decoder_layers(model.backbone)))
    if on_gpu and cuda_graph_nodes and never_waits(lambda: score_rows(model, WARM_UP_PREFIX, *WARM_UP_SPANS)):
        model.graphs = SpanPassGraphs(model.backbone, cuda_graph_nodes)
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
    kept: tuple[Any, ...]


@dataclass
class LayerPass:
    """What a compiled layer is handed in place of the pass's plan.

    Attributes:
        prefix_key: [1, Hkv, P, Dk], a view of the cache.
        prefix_value: [1, Hkv, P, Dv], a view of the cache.
        tables: `KernelTiles.tables`.
        windowed: whether the layer has a window.
        config: the kernel's settings.
        computed: filled by `attend`: the layer's own key [1, Hkv, N, Dk] and value [1, Hkv, N, Dv].
    """

    prefix_key: torch.Tensor
    prefix_value: torch.Tensor
    tables: torch.Tensor
    windowed: bool
    config: tuple[int, ...]
    computed: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """The kernel's operator; arguments and result as `forest_attention`."""
        self.computed.append((key, value))
        attended: torch.Tensor = torch.ops.decodner.forest_attention(
            query, key, value, self.prefix_key, self.prefix_value, self.tables, self.windowed,
            scaling, softcap, sinks, self.config,
        )  # fmt: skip
        return attended


class CompiledLayer:
    """Stands in for a decoder layer's `forward`; what its graph does not cover runs as before."""

    def __init__(self, layer: nn.Module, call: LayerCall, run: Callable[..., Any]) -> None:
        """Takes the layer, its attention call, and the compiled `forward` of its class."""
        self.layer, self.call, self.run = layer, call, run
        self.uncompiled = layer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer's `forward`."""
        plan = kwargs.get("forest_plan")
        if plan is None or torch.is_grad_enabled():
            return self.uncompiled(*args, **kwargs)
        layer_pass = self._layer_pass(plan)
        if layer_pass is None:
            return self.uncompiled(*args, **kwargs)
        plan.next_call(self.call.layer_idx)
        states = self.run(self.layer, *args, **(kwargs | {"forest_plan": layer_pass}))
        if plan.write:
            plan.cache.write_prefix(self.call.layer_idx, 0, *layer_pass.computed[0])
        return states

    def _layer_pass(self, plan: Any) -> LayerPass | None:
        """The layer's share of the plan; None without a cached prefix, for a single node, or for other dtypes."""
        call = self.call
        if plan.cache is None or plan.prefix_length < LEAST or plan.subtree_end.shape[0] < LEAST:
            return None
        prefix_key, prefix_value = plan.cache.read_prefix(call.layer_idx, 0)
        if _kind(prefix_key) != call.kept:
            return None
        tiles = plan.kernel_tiles(call.window, call.shape, prefix_key.device)
        return LayerPass(
            prefix_key=prefix_key.data,  # not known as a view: a graph would depend on the size of the whole buffer
            prefix_value=prefix_value.data,
            tables=tiles.tables,
            windowed=tiles.windowed,
            config=call.config,
        )


@dataclass
class _RecordingPlan(ForestPlan):
    """Notes which layer asked for which tiles."""

    asked: list[tuple[int, LayerWindow, TileShape]] = field(default_factory=list)
    current_layer: int = 0

    def next_call(self, layer_idx: int) -> int:
        self.current_layer = layer_idx
        return super().next_call(layer_idx)

    def kernel_tiles(self, window: LayerWindow, shape: TileShape, device: torch.device) -> KernelTiles:
        self.asked.append((self.current_layer, window, shape))
        return super().kernel_tiles(window, shape, device)


@torch.no_grad()
def compile_layers(backbone: PreTrainedModel, **options: Any) -> None:
    """Gives every decoder layer a compiled forward for packed passes over a cached prefix; nothing is compiled yet.

    Args:
        backbone: a native causal LM under the "decodner" attention.
        **options: handed to `torch.compile` (mode, backend, options, fullgraph).

    Raises:
        ValueError: no GPU or Triton, layers that are not one kernel call each, are compiled already or are spread over
            devices.
    """
    name = type(backbone).__name__
    layers = decoder_layers(backbone)
    if any("forward" in vars(layer) for layer in layers):
        raise ValueError(
            f"the layers of this {name} are compiled already, or spread over several devices, which compiled layers "
            "cannot be: compile once, and load the model onto one GPU."
        )
    calls = _attention_calls(backbone)
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


def _attention_calls(backbone: PreTrainedModel) -> list[LayerCall]:
    """Runs a few tokens and returns the kernel calls that the layers made, in their order."""
    config = backbone.config.get_text_config(decoder=True)
    device = backbone.get_input_embeddings().weight.device
    cache = DualBufferCache()
    plan = _RecordingPlan(
        torch.arange(PROBE_TOKENS),
        torch.full((PROBE_TOKENS,), PROBE_TOKENS - 1, dtype=torch.int32),
        cache=cache,
        write=True,
        layer_windows=layer_windows(config),
    )
    positions = plan.position_ids.to(device)
    last_hidden_states(backbone, positions, positions, plan)
    cache.commit(PROBE_TOKENS)
    if not HAS_KERNEL or any(count > 1 for count in plan.calls.values()):
        return []
    calls = []
    for layer_idx, window, shape in plan.asked:
        key, value = cache.read_prefix(layer_idx, 0)
        settings = kernel_config(key.dtype, key.shape[3], value.shape[3], key.device)
        config_fields = tuple(int(setting) for setting in astuple(settings))
        calls.append(LayerCall(layer_idx, window, shape, config_fields, _kind(key)))
    return calls


def _kind(key: torch.Tensor) -> tuple[Any, ...]:
    return key.shape[1], key.shape[3], key.dtype, key.device
