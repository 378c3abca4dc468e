"""Times one layer's attention of a span forest over a shared prefix: the fused kernel and what it competes with.

In: sizes by flags. Out: a table, one line a measurement, and as the last line the same as JSON. Every method runs
inside a CUDA graph; the median is reported. `flash` is SDPA's flash attention over the prefix alone, every node an
unmasked query, which is the ceiling that the kernel is held against (a chain without prefix: causal, the same work).
`flex` is FlexAttention, compiled for each size, with the forest's rule, prefix and nodes in one key tensor (joining
them is not timed); `flex_dynamic` the same, compiled for all sizes at once. TFLOP/s count visible pairs only.
"""

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import triton
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from decodner_hf.core.attention_metadata import AttentionMetadata
from decodner_hf.core.attention_torch import forest_attention, forest_attention_reference
from decodner_hf.core.attention_triton import KernelConfig, forest_attention_triton, kernel_config
from decodner_hf.core.forest import SpanPaths, build_forest
from decodner_hf.core.layer_window import LayerWindow

VOCABULARY = 128_000
SECOND_TOKEN = 0.3  # share of words with two tokens: 1.3 tokens a word
CHECKED_PAIRS = 2**26  # most query-key pairs of the dense reference, a head
FULL_WINDOW = LayerWindow()
Method = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """One layer's inputs on the GPU: query [1, H, N, D], key and value [1, Hkv, N, D], prefix [1, Hkv, P, D]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    prefix: tuple[torch.Tensor, torch.Tensor] | None
    metadata: AttentionMetadata

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The arguments of every forest attention."""
        return self.query, self.key, self.value, self.prefix, self.metadata, FULL_WINDOW, self.scaling

    @property
    def scaling(self) -> float:
        """The usual factor of the logits."""
        return float(self.query.shape[3] ** -0.5)

    @property
    def flops(self) -> tuple[int, int]:
        """Floating-point operations of the visible pairs: all of them, those with the prefix."""
        _, heads, nodes, head_size = self.query.shape
        pair = 4 * heads * head_size
        return pair * int((self.metadata.position_ids + 1).sum()), pair * nodes * self.metadata.prefix_length


def span_metadata(nodes: int, prefix_length: int, width: int, seed: int = 0) -> AttentionMetadata:
    """Returns the first `nodes` nodes of the span trees of a random document, all spans of at most `width` words."""
    random = np.random.default_rng(seed)
    words = nodes // (width // 2) + width + 1
    lengths = 1 + (random.random(words) < SECOND_TOKEN)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    tokens = random.integers(0, VOCABULARY, bounds[-1])
    ends = np.minimum(np.arange(words) + width, words)
    paths = [tokens[bounds[first] : bounds[end]] for first, end in enumerate(ends)]
    sizes = np.array([len(path) for path in paths])
    whole = SpanPaths(np.concatenate(paths), np.concatenate([[0], np.cumsum(sizes)]), np.arange(words), sizes)
    forest = build_forest([[]], [whole], first_position=prefix_length)
    subtree_end = forest.subtree_end[:nodes].clamp(max=nodes - 1)
    return AttentionMetadata(forest.position_ids[:nodes], subtree_end, prefix_length=prefix_length)


def chain_metadata(nodes: int, prefix_length: int) -> AttentionMetadata:
    """One document of `nodes` tokens, as when a prefix is encoded."""
    forest = build_forest([np.arange(nodes)], first_position=prefix_length)
    return AttentionMetadata(forest.position_ids, forest.subtree_end, prefix_length=prefix_length)


def make_problem(metadata: AttentionMetadata, heads: tuple[int, int], head_size: int, dtype: torch.dtype) -> Problem:
    """Random inputs, laid out as a model's: heads inside nodes, the prefix in a longer buffer."""
    generator = torch.Generator("cuda").manual_seed(0)
    nodes, capacity = len(metadata.subtree_end), metadata.prefix_length + 64

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float32).to(dtype)

    query, key, value = (
        normal(1, nodes, count, head_size).transpose(1, 2) for count in (heads[0], heads[1], heads[1])
    )
    kept = [normal(1, heads[1], capacity, head_size)[:, :, : metadata.prefix_length] for _ in range(2)]
    return Problem(query, key, value, (kept[0], kept[1]) if metadata.prefix_length else None, metadata)


def kernel_method(problem: Problem, config: KernelConfig | None = None) -> Method:
    """Runs the fused kernel, in the table's configuration if none is given."""
    return partial(forest_attention_triton, *problem.inputs, config=config)


def blocks_method(problem: Problem) -> Method:
    """Runs the torch path, block by block."""
    return partial(forest_attention, *problem.inputs)


def flash_prefix_method(problem: Problem) -> Method:
    """SDPA's flash attention over the prefix alone, or causal over the nodes where there is none."""
    keys, values = problem.prefix or (problem.key, problem.value)
    causal = problem.prefix is None

    def attend() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(problem.query, keys, values, is_causal=causal, enable_gqa=True)

    return attend


def flex_method(problem: Problem, dynamic: bool = False) -> Method:
    """Compiled FlexAttention over prefix and nodes in one key tensor."""
    prefix_length, nodes = problem.metadata.prefix_length, problem.query.shape[2]
    first, subtree_end = torch.tensor(prefix_length, device="cuda"), problem.metadata.subtree_end.cuda()

    def visible(batch: torch.Tensor, head: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        node = column - first
        end = subtree_end[node.clamp(min=0)]
        return (node < 0) | ((node <= row) & (row <= end))

    mask = create_block_mask(visible, None, None, nodes, prefix_length + nodes, device="cuda")
    keys, values = problem.key, problem.value
    if problem.prefix is not None:
        keys, values = (torch.cat(pair, dim=2) for pair in zip(problem.prefix, (keys, values), strict=True))
    if not dynamic:
        torch._dynamo.reset()  # every size is compiled, and few recompilations are allowed
    compiled = torch.compile(flex_attention, dynamic=dynamic)
    query = problem.query.contiguous()
    return partial(compiled, query, keys.contiguous(), values.contiguous(), block_mask=mask, enable_gqa=True)


METHODS = {
    "kernel": kernel_method,
    "blocks": blocks_method,
    "flash": flash_prefix_method,
    "flex": flex_method,
    "flex_dynamic": partial(flex_method, dynamic=True),
}


def check(problem: Problem, config: KernelConfig | None) -> dict[str, float]:
    """Returns the kernel's greatest error against the reference in float64, and the torch path's.

    Raises:
        ValueError: the kernel's error is above twice the torch path's plus 1e-6, or not a number.
    """
    group = problem.query.shape[1] // problem.key.shape[1]
    fused, blocks = kernel_method(problem, config)(), blocks_method(problem)()
    errors: dict[str, list[torch.Tensor]] = {"kernel": [], "blocks": []}
    for head in range(problem.key.shape[1]):
        rows = slice(head * group, (head + 1) * group)
        prefix = problem.prefix and tuple(part[:, head : head + 1].double() for part in problem.prefix)
        inputs = (problem.query[:, rows], problem.key[:, head : head + 1], problem.value[:, head : head + 1])
        exact = forest_attention_reference(
            *(tensor.double() for tensor in inputs), prefix, problem.metadata, FULL_WINDOW, problem.scaling
        )
        for name, found in (("kernel", fused), ("blocks", blocks)):
            errors[name].append((found[:, :, rows].double() - exact).abs().max())
    greatest = {name: float(torch.stack(found).max()) for name, found in errors.items()}
    if not greatest["kernel"] <= 2 * greatest["blocks"] + 1e-6:
        raise ValueError(
            f"the kernel is wrong: greatest errors {greatest}, where twice that of the blocks is allowed."
        )
    return greatest


def milliseconds(method: Method) -> float:
    """Median time of a call inside a CUDA graph."""
    for _ in range(3):
        method()
    return float(triton.testing.do_bench_cudagraph(method, rep=10, return_mode="median"))


def measure(problem: Problem, name: str, config: KernelConfig | None) -> dict[str, object]:
    """One line of the table."""
    _, heads, nodes, head_size = problem.query.shape
    line: dict[str, object] = {
        "method": name,
        "nodes": nodes,
        "prefix": problem.metadata.prefix_length,
        "heads": heads,
        "kv_heads": problem.key.shape[1],
        "head_size": head_size,
        "dtype": str(problem.query.dtype).removeprefix("torch."),
    }
    if name == "kernel":
        chosen = config or kernel_config(problem.query.dtype, head_size, head_size, problem.query.device)
        line["config"] = ",".join(str(int(setting)) for setting in astuple(chosen))
    method = kernel_method(problem, config) if name == "kernel" else METHODS[name](problem)
    line["ms"] = round(milliseconds(method), 5)
    flops = problem.flops[1 if name == "flash" and problem.prefix else 0]
    line["tflops"] = round(flops / line["ms"] / 1e9, 1)
    return line


def _config(text: str) -> KernelConfig:
    fields = [int(part) for part in text.split(",")]
    return KernelConfig(*fields[:6], tma=bool(fields[6]), resident=fields[7])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[256, 2048, 8192, 32768])
    parser.add_argument("--prefix", type=int, nargs="+", default=[0, 512, 2048, 8192, 32768])
    parser.add_argument("--head-size", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--heads", type=int, nargs=2, default=[32, 8], metavar=("QUERY", "KEY_VALUE"))
    parser.add_argument("--width", type=int, default=8, help="longest span in words")
    parser.add_argument("--forest", choices=["spans", "chain"], default="spans")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["kernel", "flash", "flex"])
    parser.add_argument(
        "--config",
        type=_config,
        nargs="+",
        default=[None],
        help="kernel configurations to time: block_m,block_n,block_p,warps,stages,registers,tma,resident",
    )
    parser.add_argument("--check", action="store_true", help="compare the kernel with the reference first")
    return parser.parse_args()


def _run(problem: Problem, arguments: argparse.Namespace) -> list[dict[str, object]]:
    lines = []
    for name in arguments.methods:
        if name == "flash" and problem.prefix is None and arguments.forest == "spans":
            continue
        for config in arguments.config if name == "kernel" else [None]:
            line = measure(problem, name, config)
            pairs = problem.metadata.num_nodes * (problem.metadata.num_nodes + problem.metadata.prefix_length)
            if name == "kernel" and arguments.check and pairs <= CHECKED_PAIRS:
                line["errors"] = check(problem, config)
            print("  ".join(f"{field}={entry}" for field, entry in line.items()), flush=True)
            lines.append(line)
    return lines


def main() -> None:
    """Runs every combination of the sizes given and prints one line each, then all of them as JSON."""
    arguments = _arguments()
    setting = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }
    print("  ".join(f"{field}={entry}" for field, entry in setting.items()), f"forest={arguments.forest}")
    lines = []
    for head_size in arguments.head_size:
        for prefix_length in arguments.prefix:
            for nodes in arguments.nodes:
                if arguments.forest == "spans":
                    metadata = span_metadata(nodes, prefix_length, arguments.width)
                else:
                    metadata = chain_metadata(nodes, prefix_length)
                problem = make_problem(metadata, tuple(arguments.heads), head_size, getattr(torch, arguments.dtype))
                lines.extend(_run(problem, arguments))
    print(json.dumps({**setting, "forest": arguments.forest, "measurements": lines}))


if __name__ == "__main__":
    main()
