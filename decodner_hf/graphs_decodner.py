"""CUDA graphs of whole span passes: one a size, replayed for every pass that it fits, so that launching is one call.

In: a pass's plan, tokens and label rows, and the function that runs such a pass. Out: logits at the nodes asked for.
A graph reads its inputs at fixed addresses: tokens, positions, block maps and a copy of the prefix are written there
before each replay. A pass is padded to its graph's size with nodes that see nothing but the prefix and themselves.
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
from numpy.typing import NDArray
from torch import nn

from .attention_decodner import ForestPlan, LayerWindow, QueryBlock
from .cache_decodner import DualBufferCache
from .tiles_decodner import TABLE_WIDTH, KernelTiles, TileShape, is_windowed, tile_arrays
from .transfers_decodner import upload
from .weights_decodner import WeightsWatch

logger = logging.getLogger(__name__)

NODE_STEPS = ((512, 64), (4096, 128), (8192, 256), (2**31, 512))  # up to so many nodes, sizes are multiples of
PREFIX_SIZES = (512, 4096)
ROW_SIZES = (16, 64, 256)
MOST_KEY_TILES = 2**18
KEPT_GRAPHS = 128
PASSES_IN_FLIGHT = 4  # how far the host may be ahead of the device

RunPass = Callable[[torch.Tensor, torch.Tensor, ForestPlan, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class PassSize:
    """What one graph serves: passes of at most so many nodes, prefix entries and rows of the head."""

    nodes: int
    prefix: int
    rows: int

    @classmethod
    def of(cls, nodes: int, prefix_length: int, rows: int) -> "PassSize | None":
        """The smallest size that holds such a pass; None where none does, or where there is no prefix."""
        prefixes = [size for size in PREFIX_SIZES if prefix_length <= size]
        row_sizes = [size for size in ROW_SIZES if rows <= size]
        if not prefixes or not row_sizes or not prefix_length:
            return None
        return cls(_whole_nodes(nodes), prefixes[0], row_sizes[0])


def _whole_nodes(nodes: int) -> int:
    step = next(step for most, step in NODE_STEPS if nodes <= most)
    return -(-nodes // step) * step


class FixedTensor:
    """A flat tensor on the device, written from the host again and again without waiting for work in flight."""

    def __init__(self, count: int, dtype: torch.dtype, device: torch.device) -> None:
        """Takes its memory: on the device, and on the host once for each pass that may be in flight."""
        pinned = device.type == "cuda"
        self.values = torch.zeros(count, dtype=dtype, device=device)
        self._staged = [torch.empty(count, dtype=dtype, pin_memory=pinned) for _ in range(PASSES_IN_FLIGHT)]
        self._arrays = [staged.numpy() for staged in self._staged]

    def write(self, values: NDArray[Any], slot: int) -> None:
        """Copies an array to the front; `slot` is one of whose last use the device is done."""
        flat = values.reshape(-1)
        self._arrays[slot][: len(flat)] = flat
        self.values[: len(flat)].copy_(self._staged[slot][: len(flat)], non_blocking=True)


class FixedInputs:
    """The memory that all graphs read their inputs from."""

    def __init__(self, most_nodes: int, device: torch.device) -> None:
        """Takes memory for tokens, positions and rows; for the rest when a pass first asks for it."""
        self.most_nodes, self.device = most_nodes, device
        self.token_ids = FixedTensor(most_nodes, torch.int64, device)
        self.position_ids = FixedTensor(most_nodes, torch.int64, device)
        self.rows = FixedTensor(ROW_SIZES[-1], torch.int64, device)
        self.prefix = DualBufferCache(max_prefix_len=PREFIX_SIZES[-1])
        self.tiles: dict[tuple[LayerWindow, TileShape], tuple[FixedTensor, FixedTensor, FixedTensor]] = {}
        self._held: tuple[torch.Tensor, int, int] | None = None  # which prefix `prefix` is a copy of
        self._events = [torch.cuda.Event() for _ in range(PASSES_IN_FLIGHT)] if device.type == "cuda" else []
        self._slot = 0

    def fill(self, plan: ForestPlan, token_ids: torch.Tensor, rows: torch.Tensor, size: PassSize) -> ForestPlan | None:
        """Writes a pass's inputs; returns its plan, padded, or None where its block map is too large."""
        padding = size.nodes - token_ids.shape[0]
        last = torch.arange(token_ids.shape[0], size.nodes, dtype=plan.subtree_end.dtype)
        padded = ForestPlan(
            position_ids=torch.cat([plan.position_ids, plan.position_ids.new_full((padding,), plan.prefix_length)]),
            subtree_end=torch.cat([plan.subtree_end, last]),
            prefix_length=plan.prefix_length,
            layer_windows=plan.layer_windows,
        )
        self._begin()
        if not all(self.fill_tiles(padded, *kind) for kind in self.tiles):
            return None
        assert plan.cache is not None
        self._copy_prefix(plan.cache)
        for fixed, values in (
            (self.token_ids, token_ids),
            (self.position_ids, padded.position_ids),
            (self.rows, rows),
        ):
            fixed.write(values.numpy(), self._slot)
        return padded

    def fill_tiles(self, plan: ForestPlan, window: LayerWindow, shape: TileShape) -> bool:
        """Writes the block map of a padded plan; False if it is too large."""
        if (window, shape) not in self.tiles:
            table, nodes = -(-self.most_nodes * shape.group // shape.block_m) * TABLE_WIDTH, 3 * self.most_nodes
            fixed = tuple(FixedTensor(count, torch.int32, self.device) for count in (table, MOST_KEY_TILES, nodes))
            self.tiles[window, shape] = (fixed[0], fixed[1], fixed[2])
        arrays = tile_arrays(plan.position_ids, plan.subtree_end, plan.prefix_length, window, shape)
        if len(arrays[1]) > MOST_KEY_TILES:
            return False
        for tensor, array in zip(self.tiles[window, shape], arrays, strict=True):
            tensor.write(array, self._slot)
        return True

    def end(self) -> None:
        """To be called once the pass is launched: from where the device is then, the inputs may be written again."""
        if self._events:
            self._events[self._slot].record()

    def _begin(self) -> None:
        before, self._slot = self._slot, (self._slot + 1) % PASSES_IN_FLIGHT
        if self._events:
            self._events[before].wait()  # it may have been launched on another stream
            self._events[self._slot].synchronize()

    def _copy_prefix(self, cache: DualBufferCache) -> None:
        keys = cache.layer(0).prefix_buffer(0).keys
        assert keys is not None, "a prefix is counted, but no buffer holds it"
        version = -1 if keys.is_inference() else keys._version
        held = self._held
        if held is not None and version >= 0 and held[0] is keys and held[1:] == (version, cache.prefix_length):
            return
        for layer_idx, layer in enumerate(cache.layers):
            for call in range(len(layer.calls)):
                self.prefix.layer(layer_idx).prefix_buffer(call).write(0, *cache.read_prefix(layer_idx, call))
        self._held = keys, version, cache.prefix_length


@dataclass
class FixedPlan(ForestPlan):
    """The plan of a pass that runs on fixed inputs; `prefix_length` is the graph's size, not the prefix's length."""

    inputs: FixedInputs | None = None
    source: ForestPlan | None = None

    def kernel_tiles(self, window: LayerWindow, shape: TileShape, device: torch.device) -> KernelTiles:  # noqa: ARG002
        """The block map at its fixed address; written for the first layer of each kind that asks for it."""
        assert self.inputs is not None
        assert self.source is not None
        if (window, shape) not in self.inputs.tiles and not self.inputs.fill_tiles(self.source, window, shape):
            raise NotFixedError(f"more than {MOST_KEY_TILES} key tiles")
        flat_table, flat_starts, flat_nodes = (fixed.values for fixed in self.inputs.tiles[window, shape])
        nodes = self.subtree_end.shape[0]
        tiles = -(-nodes * shape.group // shape.block_m)
        return KernelTiles(
            table=flat_table[: tiles * TABLE_WIDTH].view(tiles, TABLE_WIDTH).data,
            key_starts=flat_starts,
            nodes=flat_nodes[: 3 * nodes].view(3, nodes).data,
            windowed=is_windowed(window),
            prefix_length=self.prefix_length,
            shape=shape,
        )

    def blocks(self, window: LayerWindow, device: torch.device) -> list[QueryBlock]:  # noqa: ARG002
        """Torch's own attention has its masks from the host."""
        raise NotFixedError("attention without the kernel")


class NotFixedError(Exception):
    """A pass that a graph cannot serve: its block map is too large, or its attention does not read one."""


@dataclass(frozen=True)
class Captured:
    """A graph, and where it leaves the logits [N, U]."""

    graph: Any
    logits: torch.Tensor


class SpanPassGraphs:
    """The graphs of a model's span passes.

    They hold, for as long as the model lives: the activations of the largest pass met; a copy of the prefix's keys and
    values, room for 4,096 tokens; and what the driver keeps for at most 128 graphs.

    Attributes:
        most_nodes: nodes of the largest pass that gets a graph, a size of `PassSize`.
        captures: how many graphs were captured so far.
    """

    def __init__(self, backbone: nn.Module, most_nodes: int) -> None:
        """Captures nothing yet; `most_nodes` is rounded up to a size."""
        self.most_nodes = _whole_nodes(most_nodes)
        self._backbone = backbone
        self._watch = WeightsWatch(backbone, in_place=False)
        self._lock = RLock()
        self._graphs: OrderedDict[PassSize, Captured] = OrderedDict()
        self._met: set[PassSize] = set()
        self._inputs: FixedInputs | None = None
        self._pool: Any = None
        self._refused = not _stay_put(backbone)
        self.captures = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model, or one that was unpickled, has none."""
        return type(None), ()

    def logits(
        self, run: RunPass, plan: ForestPlan, token_ids: torch.Tensor, rows: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor | None:
        """Replays the pass's graph; it is captured when the second pass of its size comes.

        Args:
            run: (tokens [N], positions [N], plan, rows [U]) -> logits [N, U], without waiting for the device.
            plan: of N nodes over a cached prefix that is only read.
            token_ids: int64 [N], on the CPU.
            rows: int64 [U], token ids whose logits are asked for, on the CPU.
            at: int64 [S], nodes at which they are asked for, on the CPU.

        Returns:
            [S, U] in memory of its own; None where no graph serves such a pass, or memory for one ran out, and at the
            first pass of a size.
        """
        size = PassSize.of(token_ids.shape[0], plan.prefix_length, rows.shape[0])
        if size is None or size.nodes > self.most_nodes:
            return None
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if self._watch.changed():
                self._drop(refused=not _stay_put(self._backbone))
            if self._refused or not self._is_worth(size):
                return None
            inputs = self._inputs or FixedInputs(self.most_nodes, next(self._backbone.parameters()).device)
            self._inputs = inputs
            try:
                captured = self._filled(inputs, run, plan, token_ids, rows, size)
                if captured is None:
                    return None
                captured.graph.replay()
                (nodes,) = upload([at], inputs.device)  # while the graph runs
                return captured.logits[nodes][:, : rows.shape[0]]
            except (torch.OutOfMemoryError, NotFixedError) as error:
                logger.warning("No CUDA graph for %s (%s): passes run without graphs from now on.", size, error)
                self._drop(refused=True)
                return None
            finally:
                inputs.end()

    def _is_worth(self, size: PassSize) -> bool:
        """Whether such a pass came before: capturing costs as much as several passes."""
        came_before = size in self._met
        self._met.add(size)
        return came_before

    def _drop(self, refused: bool) -> None:
        self._graphs.clear()
        self._met.clear()
        self._inputs, self._pool, self._refused = None, None, refused

    def _filled(
        self,
        inputs: FixedInputs,
        run: RunPass,
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
            self._graphs[size] = self._capture(run, inputs, padded, size)
            if len(self._graphs) > KEPT_GRAPHS:
                self._met.discard(self._graphs.popitem(last=False)[0])
        self._graphs.move_to_end(size)
        return self._graphs[size]

    def _capture(self, run: RunPass, inputs: FixedInputs, padded: ForestPlan, size: PassSize) -> Captured:
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
        token_ids, position_ids, row_ids = (
            fixed.values[:count].data
            for fixed, count in (
                (inputs.token_ids, size.nodes), (inputs.position_ids, size.nodes), (inputs.rows, size.rows)
            )
        )  # fmt: skip

        def run_fixed() -> torch.Tensor:
            plan.calls.clear()
            return run(token_ids, position_ids, plan, row_ids)

        run_fixed()  # whatever is compiled, loaded or allocated once must be so before
        self.captures += 1
        return self._record(run_fixed)

    def _record(self, run_fixed: Callable[[], torch.Tensor]) -> Captured:
        """Captures on a stream of its own; `torch.cuda.graph` would first give cached memory back to the driver."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                logits = run_fixed()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return Captured(graph, logits)


def _stay_put(backbone: nn.Module) -> bool:
    """Whether all weights are plain tensors on one GPU, and no adapter could be switched on or off between passes."""
    plain = all(type(parameter) is nn.Parameter for parameter in backbone.parameters())
    devices = {parameter.device for parameter in backbone.parameters()}
    return plain and len(devices) == 1 and not getattr(backbone, "_hf_peft_config_loaded", False)


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
