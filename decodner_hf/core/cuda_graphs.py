"""CUDA graphs of whole span passes: one a size, replayed for every pass that it fits, so that launching is one call.

In: a pass's plan, tokens and label rows, and the function that runs such a pass. Out: logits at the nodes asked for.
A graph reads its inputs at fixed addresses, where they are written before each replay. A pass is padded to its graph's
size with nodes that see nothing but the prefix and themselves.
Knows nothing of labels, text or what a layer computes.
"""

import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
from torch import nn

from .attention_metadata import ForestPlan
from .label_head import has_plain_head, last_hidden_states, row_logits
from .static_inputs import FixedInputs, FixedPlan, NotFixedError, PassSize, whole_nodes
from .transfers import is_out_of_memory, upload
from .weights import WeightsWatch, adapted_layers

logger = logging.getLogger(__name__)

KEPT_GRAPHS = 128


@dataclass(frozen=True)
class Captured:
    """A graph, and where it leaves the logits [N, U]."""

    graph: Any
    logits: torch.Tensor


class SpanPassGraphs:
    """The graphs of a model's span passes.

    They hold, for as long as the model lives: the activations of the largest pass met; a copy of the prefix's keys and
    values, room for 4,096 tokens; and what the driver keeps for at most 128 graphs. They also hold the weights
    that they read: whether those are still the model's is seen while a graph runs; if not, its result is thrown away.

    Attributes:
        most_nodes: nodes of the largest pass that gets a graph, a size of `PassSize`.
        captures: how many graphs were captured so far.
    """

    def __init__(self, backbone: nn.Module, most_nodes: int) -> None:
        """Captures nothing yet; `most_nodes` is rounded up to a size."""
        self.most_nodes = whole_nodes(most_nodes)
        self._backbone = backbone
        self._watch = WeightsWatch(backbone, in_place=False)
        self._lock = RLock()
        self._graphs: OrderedDict[PassSize, Captured] = OrderedDict()
        self._weights: list[torch.Tensor] = []  # that the graphs read, the embedding first
        self._met: set[PassSize] = set()
        self._inputs: FixedInputs | None = None
        self._pool: Any = None
        self._stream: Any = None
        self._refused = not _stay_put(backbone)
        self.captures = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model, or one that was unpickled, has none."""
        return type(None), ()

    def logits(
        self, plan: ForestPlan, token_ids: torch.Tensor, at: torch.Tensor, symbols: torch.Tensor
    ) -> torch.Tensor | None:
        """Replays the pass's graph; it is captured when the second pass of its size comes.

        Args:
            plan: of N nodes.
            token_ids: int64 [N].
            at: int64 [S], nodes at which logits are asked for.
            symbols: int64 [Q, U], token ids whose logits are asked for, -1 for none.

        Returns:
            [S, U] in memory of its own; None where no graph serves such a pass (with gradients, under autocast, over
            no cached prefix, for several prompts, tensors that are not on the CPU), or memory for one ran out, at the
            first pass of a size, and where the weights were changed since the last pass.
        """
        if plan.cache is None or self._backbone.training or torch.is_grad_enabled():
            return None
        weight = _embedding(self._backbone)
        if torch.is_autocast_enabled(weight.device.type):  # a graph has its dtypes fixed
            return None
        on_cpu = all(tensor.device.type == "cpu" for tensor in (token_ids, at, symbols))
        if symbols.shape[0] > 1 or not on_cpu or bool((symbols < 0).any()) or not has_plain_head(self._backbone):
            return None
        rows = symbols[0]
        size = PassSize.of(token_ids.shape[0], plan.prefix_length, rows.shape[0])
        if size is None or size.nodes > self.most_nodes:
            return None
        with self._lock, torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(weight):
            runs = size in self._graphs and weight.data_ptr() == self._weights[0].data_ptr()
            if not runs:
                self._have_changed()
            if self._refused or not self._is_worth(size):
                return None
            inputs = self._inputs or FixedInputs(self.most_nodes, weight.device)
            self._inputs = inputs
            try:
                captured = self._filled(inputs, plan, token_ids, rows, size)
                if captured is None:
                    return None
                captured.graph.replay()
                if runs and self._have_changed():
                    return None
                (nodes,) = upload([at], inputs.device)  # while the graph runs
                return captured.logits[nodes][:, : rows.shape[0]]
            except (NotFixedError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    raise
                logger.warning("No CUDA graph for %s (%s): passes run without graphs from now on.", size, error)
                self._drop(refused=True)
                return None
            finally:
                inputs.end()

    def release(self) -> None:
        """Gives back what the graphs hold; they are captured anew where they are worth it."""
        with self._lock:
            self._drop(refused=self._refused)

    def _have_changed(self) -> bool:
        """Whether the weights are others than those that the graphs read, which are dropped then."""
        changed = self._watch.changed()
        if changed:
            self._drop(refused=not _stay_put(self._backbone))
        return changed

    def _is_worth(self, size: PassSize) -> bool:
        """Whether such a pass came before: capturing costs as much as several passes."""
        came_before = size in self._met
        self._met.add(size)
        return came_before

    def _settle(self) -> None:
        """Waits until no graph runs, as must be before one is destroyed."""
        if self._inputs is not None and self._inputs.device.type == "cuda":
            torch.cuda.synchronize(self._inputs.device)

    def _drop(self, refused: bool) -> None:
        self._settle()
        self._graphs.clear()
        self._weights.clear()
        self._met.clear()
        self._inputs, self._pool, self._stream, self._refused = None, None, None, refused

    def _filled(
        self,
        inputs: FixedInputs,
        plan: ForestPlan,
        token_ids: torch.Tensor,
        rows: torch.Tensor,
        size: PassSize,
    ) -> Captured | None:
        """The graph for a pass whose inputs are in place; None if they do not fit."""
        padded = inputs.fill(plan, token_ids, rows, size)
        if padded is None:
            return None
        if size not in self._graphs:
            self._graphs[size] = self._capture(inputs, padded, size)
            if len(self._graphs) > KEPT_GRAPHS:
                self._settle()
                self._met.discard(self._graphs.popitem(last=False)[0])
        self._graphs.move_to_end(size)
        return self._graphs[size]

    def _capture(self, inputs: FixedInputs, padded: ForestPlan, size: PassSize) -> Captured:
        inputs.prefix.prefix_length = size.prefix
        plan = FixedPlan(
            padded.position_ids,
            padded.subtree_end,
            size.prefix,
            inputs.prefix,
            layer_windows=padded.layer_windows,
            inputs=inputs,
            source=padded,
        )
        # .data: known as views, they would make a compiled graph depend on the size of the whole
        sizes = [size.nodes, size.nodes, size.rows]
        position_ids, token_ids, row_ids = (part.data for part in inputs.nodes.values[: sum(sizes)].split(sizes))

        def run_fixed() -> torch.Tensor:
            plan.calls.clear()
            states = last_hidden_states(self._backbone, token_ids, position_ids, plan)
            return row_logits(self._backbone, states, row_ids)

        if not self._weights:
            weights = (_embedding(self._backbone), *self._backbone.parameters(), *self._backbone.buffers())
            self._weights = [weight.data for weight in weights]
        run_fixed()  # whatever is compiled, loaded or allocated once must be so before
        self.captures += 1
        return self._record(run_fixed)

    def _record(self, run_fixed: Callable[[], torch.Tensor]) -> Captured:
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
                logits = run_fixed()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return Captured(graph, logits)


def _embedding(backbone: Any) -> torch.Tensor:
    weight: torch.Tensor = backbone.get_input_embeddings().weight
    return weight


def _stay_put(backbone: nn.Module) -> bool:
    """Whether all weights are plain tensors on one GPU, and no adapter could be switched on or off between passes."""
    plain = all(type(parameter) is nn.Parameter for parameter in backbone.parameters())
    devices = {parameter.device for parameter in backbone.parameters()}
    return plain and len(devices) == 1 and not adapted_layers(backbone)


def never_waits(run: Callable[[], Any]) -> bool:
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
