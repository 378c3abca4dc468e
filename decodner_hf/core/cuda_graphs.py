"""CUDA graphs of whole span passes: one per size, replayed for every pass that it fits, so that launching is one call.

In: a pass's metadata, tokens and label symbols. Out: logits at the nodes asked for.
A graph reads its inputs from static memory, where they are written before each replay. A pass is padded to its graph's
size with nodes that see nothing but the prefix and themselves.
Knows nothing of labels, text or what a layer computes.
"""

import logging
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .attention_metadata import AttentionMetadata
from .label_head import has_plain_head, last_hidden_states, row_logits
from .layer_window import LayerWindow
from .static_inputs import BlockMapKind, NotStaticError, PassSize, StaticInputs, whole_nodes
from .transfers import copy_to_device, is_out_of_memory
from .weights import WeightsWatch, adapted_layers

logger = logging.getLogger(__name__)

KEPT_GRAPHS = 128
PASSES_BEFORE_CAPTURE = 1  # of a size: capturing costs as much as several passes


@dataclass(frozen=True)
class Captured:
    """A graph, and where it leaves the logits [N, U]."""

    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor


class SpanPassGraphs:
    """The graphs of a model's span passes.

    They hold, for as long as the model lives: the activations of the largest pass so far; a copy of the prefix's keys
    and values, room for 4,096 tokens; and what the driver keeps for at most 128 graphs. Before every pass the model's
    modules and parameters are compared with those that the graphs read: where some were replaced or moved, the graphs
    are dropped and captured anew. Weights written in place need nothing, for the graphs read them where they are.

    Attributes:
        most_nodes: nodes of the largest pass that gets a graph, a size of `PassSize`.
        captures: how many graphs were captured so far.
        refused: whether the model allows no graphs, or memory for them ran out.
        inputs: the memory that the graphs read; None as long as there are none.
    """

    def __init__(self, backbone: PreTrainedModel, most_nodes: int, kinds: Collection[BlockMapKind]) -> None:
        """Captures nothing yet; `most_nodes` is rounded up to a size, `kinds` are the block maps that layers read."""
        self.most_nodes, self.kinds = whole_nodes(most_nodes), kinds
        self._backbone = backbone
        self._watch = WeightsWatch(backbone)
        self._lock = RLock()
        self._graphs: OrderedDict[PassSize, Captured] = OrderedDict()
        self._weights: list[torch.Tensor] = []  # that the graphs read
        self._met: Counter[PassSize] = Counter()
        self.inputs: StaticInputs | None = None
        self._pool: Any = None  # torch's handle has a private type
        self._stream: torch.cuda.Stream | None = None
        self.refused = not _stay_put(backbone)
        self.captures = 0

    def __reduce__(self) -> tuple[object, ...]:
        """A copy of the model, or one that was unpickled, has none."""
        return type(None), ()

    def logits(
        self, metadata: AttentionMetadata, token_ids: torch.Tensor, at: torch.Tensor, symbols: torch.Tensor
    ) -> torch.Tensor | None:
        """Replays the pass's graph; it is captured when the second pass of its size comes.

        Args:
            metadata: of N nodes.
            token_ids: int64 [N].
            at: int64 [S], nodes at which logits are asked for.
            symbols: int64 [Q, U], token ids whose logits are asked for, -1 for none.

        Returns:
            [S, U] in memory of its own; None where no graph serves such a pass (with gradients, under autocast, over
            no cached prefix, with numbers or kept rows, for several prompts, tensors that are not on the CPU), at the
            first pass of a size, and where memory for a graph ran out.
        """
        size = self._size(metadata, token_ids, at, symbols)
        if size is None:
            return None
        weight = _embedding(self._backbone)
        with self._lock, torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(weight):
            self._met[size] += 1
            if self.refused or self._met[size] <= PASSES_BEFORE_CAPTURE:
                return None
            inputs = self.inputs = self.inputs or StaticInputs(self.most_nodes, self.kinds, weight.device)
            try:
                if not inputs.fill(metadata, token_ids, symbols[0], size):
                    return None
                if self._watch.replaced():  # asked while the inputs are on their way
                    self.release()
                    return None
                captured = self._captured(inputs, size, metadata.layer_windows)
                captured.graph.replay()
                (nodes,) = copy_to_device([at], inputs.device)  # while the graph runs
                return captured.logits[nodes][:, : symbols.shape[1]]
            except (NotStaticError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    raise
                logger.warning(
                    "No CUDA graph for %s (%s): passes run without graphs from now on. Where the model was moved or "
                    "cast, call compile_forest() again.",
                    size,
                    error,
                )
                self.release()
                self.refused = True
                return None
            finally:
                inputs.end()

    def release(self) -> None:
        """Gives back what the graphs hold; they are captured anew where the model still allows it."""
        with self._lock:
            self._settle()
            self._graphs.clear()
            self._weights.clear()
            self._met.clear()
            self.inputs, self._pool, self._stream = None, None, None
            self.refused = not _stay_put(self._backbone)

    @property
    def sizes(self) -> list[PassSize]:
        """The sizes of which there are graphs, the one used longest ago first."""
        return list(self._graphs)

    def _size(
        self, metadata: AttentionMetadata, token_ids: torch.Tensor, at: torch.Tensor, symbols: torch.Tensor
    ) -> PassSize | None:
        """The size of the graph that serves such a pass, or None."""
        if metadata.cache is None or self._backbone.training or torch.is_grad_enabled():
            return None
        if not metadata.is_ordered or metadata.kept_rows is not None:
            return None
        if torch.is_autocast_enabled(_embedding(self._backbone).device.type):  # a graph has its dtypes fixed
            return None
        on_cpu = all(tensor.device.type == "cpu" for tensor in (token_ids, at, symbols))
        if symbols.shape[0] > 1 or not on_cpu or bool((symbols < 0).any()) or not has_plain_head(self._backbone):
            return None
        size = PassSize.of(token_ids.shape[0], metadata.prefix_length, symbols.shape[1])
        return None if size is None or size.nodes > self.most_nodes else size

    def _settle(self) -> None:
        """Waits until no graph runs, as must be before one is destroyed."""
        if self.inputs is not None and self.inputs.device.type == "cuda":
            torch.cuda.synchronize(self.inputs.device)

    def _captured(self, inputs: StaticInputs, size: PassSize, layer_windows: Sequence[LayerWindow]) -> Captured:
        """The graph of that size, captured now if there is none; the inputs of a pass must be in place."""
        if size not in self._graphs:
            self._graphs[size] = self._capture(inputs, size, layer_windows)
            if len(self._graphs) > KEPT_GRAPHS:
                self._settle()
                del self._met[self._graphs.popitem(last=False)[0]]
        self._graphs.move_to_end(size)
        return self._graphs[size]

    def _capture(self, inputs: StaticInputs, size: PassSize, layer_windows: Sequence[LayerWindow]) -> Captured:
        # .data: known as views, they would make a compiled graph depend on the size of the whole
        sizes = [size.nodes, size.nodes, size.rows]
        position_ids, token_ids, rows = (part.data for part in inputs.nodes.values[: sum(sizes)].split(sizes))

        def run() -> torch.Tensor:
            metadata = inputs.metadata(size, layer_windows)
            return row_logits(
                self._backbone, last_hidden_states(self._backbone, token_ids, position_ids, metadata), rows
            )

        if not self._weights:
            self._weights = [weight.data for weight in (*self._backbone.parameters(), *self._backbone.buffers())]
        run()  # whatever is compiled, loaded or allocated once must be so before
        self.captures += 1
        return self.record(run)

    def record(self, run: Callable[[], torch.Tensor]) -> Captured:
        """Captures as `torch.cuda.graph` does, which would give all cached memory back to the driver before.

        One stream serves all captures: matrix products keep a workspace for every stream.
        """
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        self._stream = self._stream or torch.cuda.Stream()
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                logits = run()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return Captured(graph, logits)


def _embedding(backbone: PreTrainedModel) -> torch.Tensor:
    weight: torch.Tensor = backbone.get_input_embeddings().weight
    return weight


def _stay_put(backbone: nn.Module) -> bool:
    """Whether all weights are plain tensors on one GPU, and no adapter could be switched on or off between passes."""
    plain = all(type(parameter) is nn.Parameter for parameter in backbone.parameters())
    devices = {parameter.device for parameter in backbone.parameters()}
    return plain and len(devices) == 1 and not adapted_layers(backbone)


def never_waits(run: Callable[[], object]) -> bool:
    """Runs a pass; whether the host did without waiting for the GPU, as what a graph captures must."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode", category=UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return False
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return True
