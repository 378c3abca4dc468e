"""What `compile_forest` switches on, as methods that the model class inherits: compiled layers, CUDA graphs of passes.

In: a loaded model on a GPU. Out: the same model, faster; passes that neither serves run as before.
Knows nothing of text.
"""

from typing import Any

import torch

from .attention_metadata import ForestPlan
from .compatibility import input_device
from .compilation import compile_layers
from .cuda_graphs import SpanPassGraphs, never_waits
from .forest import rows_forest
from .label_head import decoder_layers, has_plain_head, row_logits
from .static_inputs import PREFIX_SIZES
from .transfers import is_out_of_memory

WARM_UP_PREFIX = 101  # tokens; no two sizes of the pass that a graph is made for may be equal
WARM_UP_SPANS = (137, 11)  # rows and their tokens
WARM_UP_LENGTH = 8
GRAPH_WORK = 2.5e13  # nodes x weights; the device needs some 70 ms for more, in which the host launches any decoder


class CompileMethods:
    """The switch and the faster way through a pass; the host class provides the passes themselves."""

    backbone: Any
    graphs: SpanPassGraphs | None
    node_limit: int | None
    position_limit: Any
    row_head: bool
    training: bool
    encode_prefix: Any
    score_forest: Any
    _decode: Any

    def compile_forest(self, *, cuda_graph_nodes: int = 16384, **options: Any) -> None:
        """Compiles the decoder's layers for passes without gradients over a cached prefix; call it once, when loaded.

        Takes some ten seconds for each kind of layer, now; no pass of any size compiles again. Span passes over up to
        4,096 prefix tokens run as CUDA graphs, where the decoder allows it: the second pass of each size (a multiple
        of 64 to 512 nodes) is captured and takes a few times as long, later ones cost the host next to nothing. Larger
        passes, which keep the device busy longer than the host needs to launch them, run without: beyond 3,500 nodes
        with 7 billion weights in the layers, all experts counted, 25,000 with one. See `SpanPassGraphs` for the memory
        that graphs hold, and `WeightsWatch` for what changes of the model they notice.
        Hooks of the decoder's modules do not run where a graph is replayed; under autocast none is.
        Results stay within the dtype's rounding. A model that is moved or cast afterwards runs uncompiled.

        Args:
            cuda_graph_nodes: nodes of the largest pass that gets a CUDA graph; 0 for none.
            **options: handed to `torch.compile` (mode, backend, options).

        Raises:
            ValueError: no GPU or no Triton, a model whose attention the fused kernel does not serve, or one that is
                compiled already or spread over devices; fewer than 0 nodes.
        """
        if cuda_graph_nodes < 0:
            raise ValueError(f"cuda_graph_nodes must be at least 0, for no CUDA graphs, not {cuda_graph_nodes}.")
        compile_layers(self.backbone, **options)
        self._score_rows(WARM_UP_PREFIX, *WARM_UP_SPANS)
        on_gpu = input_device(self.backbone).type == "cuda"
        weights = sum(weight.numel() for layer in decoder_layers(self.backbone) for weight in layer.parameters())
        cuda_graph_nodes = min(cuda_graph_nodes, int(GRAPH_WORK / max(weights, 1)))  # quantized ones may be buffers
        if on_gpu and cuda_graph_nodes and never_waits(lambda: self._score_rows(WARM_UP_PREFIX, *WARM_UP_SPANS)):
            self.graphs = SpanPassGraphs(self.backbone, cuda_graph_nodes)
            self._warm_up_graphs(min(self.graphs.most_nodes, self.node_limit or self.graphs.most_nodes))

    def _warm_up_graphs(self, largest: int) -> None:
        """Captures a pass of `largest` nodes before all others, which then fit into the memory it takes."""
        self._score_rows(4 * PREFIX_SIZES[0], 1, WARM_UP_LENGTH)  # few nodes, a long prefix: split among programs
        try:
            for _ in range(2):  # the second of a size is captured
                self._score_rows(WARM_UP_PREFIX, largest // WARM_UP_LENGTH, WARM_UP_LENGTH)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()  # smaller passes may fit, and have graphs

    def _score_rows(self, prefix_length: int, rows: int, length: int) -> None:
        """Scores `rows` chains of `length` arbitrary tokens, if the model has positions for them."""
        if self.position_limit is not None and prefix_length + length > self.position_limit.limit:
            return
        vocabulary = self.backbone.get_input_embeddings().weight.shape[0]
        token_ids = torch.arange(max(rows * length, prefix_length)) % vocabulary
        cache = self.encode_prefix(token_ids[:prefix_length])
        forest = rows_forest(token_ids[: rows * length].reshape(rows, length), prefix_length)
        self.score_forest(forest, torch.arange(2), cache)

    def replay(
        self, token_ids: torch.Tensor, plan: ForestPlan, span_nodes: torch.Tensor, symbols: torch.Tensor
    ) -> torch.Tensor | None:
        """The label logits [S, L] by a CUDA graph; None where there is none for such a pass."""
        if self.graphs is None or plan.cache is None or self.training or torch.is_grad_enabled():
            return None
        if torch.is_autocast_enabled(input_device(self.backbone).type):  # a graph has its dtypes fixed
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
