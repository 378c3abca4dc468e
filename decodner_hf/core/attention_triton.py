"""Launches the fused kernel for the attention of a token forest over a shared prefix, as a torch operator.

In: a layer's query, key, value and prefix, and the pass's `BlockMap`. Out: attended values, without gradients.
Holds the fixed table of tile sizes and launch options. Importing this file raises ImportError where Triton is not
installed. Knows nothing of models, caches or how forests are made.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch

from .attention_metadata import AttentionMetadata
from .block_map import TileShape, count_query_tiles, make_block_map
from .kernel_triton import forest_attention_kernel, merge_splits_kernel
from .layer_window import LayerWindow

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError as error:
    raise ImportError("the fused attention kernel needs Triton 3.6 or later: pip install -U triton") from error

MIN_DOT = 16  # smallest side of a tile that tl.dot takes
MAX_HEAD_SIZE = 256
MIN_SPLIT = 512  # prefix entries a program that shares a query tile with others has at least, where P is long enough
MERGED_ROWS = 16
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class KernelConfig:
    """Tile sizes and launch options; see `TileShape` for the sizes, and let block_n divide block_p.

    Attributes:
        max_registers: registers a thread may use, at most 255; fewer let more programs share a multiprocessor.
        tma: whether key tiles come through the tensor memory accelerator, where the tensors' alignment allows.
        resident: programs that a multiprocessor holds at once; where all of a pass fill less, the prefix is split.
    """

    block_m: int
    block_n: int
    block_p: int
    num_warps: int
    num_stages: int
    max_registers: int
    tma: bool
    resident: int


# By (compute capability from, bytes of an element, padded head size up to), the first that fits; fixed, so that
# results do not change from call to call. Chosen by measurement for capability 9 (H200,
# scripts/benchmarks/bench_attention.py); the rows for 0 are moderate sizes that fit every GPU.
CONFIGS: tuple[tuple[int, int, int, KernelConfig], ...] = (
    (9, 2, 64, KernelConfig(64, 32, 64, 4, 2, 128, True, 4)),
    (9, 2, 128, KernelConfig(128, 64, 64, 8, 2, 128, True, 2)),
    (9, 2, 256, KernelConfig(64, 32, 64, 4, 1, 255, True, 2)),
    (0, 2, 64, KernelConfig(128, 64, 64, 4, 2, 255, False, 2)),
    (0, 2, 128, KernelConfig(128, 32, 32, 4, 2, 255, False, 2)),
    (0, 2, 256, KernelConfig(64, 32, 32, 4, 1, 255, False, 1)),
    (0, 4, 64, KernelConfig(64, 32, 32, 4, 1, 255, False, 2)),
    (0, 4, 256, KernelConfig(32, 16, 16, 4, 1, 255, False, 1)),
)


def kernel_supports(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, softcap: float | None = None
) -> bool:
    """Whether the kernel computes such a layer; what it takes is said at `forest_attention_triton`."""
    known = query.dtype in (torch.float16, torch.bfloat16, torch.float32) and query.dtype == key.dtype == value.dtype
    sized = query.shape[0] == 1 and max(query.shape[3], value.shape[3]) <= MAX_HEAD_SIZE
    return known and sized and query.shape[1] % key.shape[1] == 0 and scaling > 0 and (softcap is None or softcap > 0)


def kernel_config(dtype: torch.dtype, key_size: int, value_size: int, device: torch.device) -> KernelConfig:
    """The fixed configuration for a dtype, the head sizes (Dk, Dv) and the device's compute capability."""
    capability = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
    padded = max(_padded(key_size), _padded(value_size))
    for least_capability, element_size, largest, config in CONFIGS:
        if capability >= least_capability and dtype.itemsize == element_size and padded <= largest:
            return config
    raise ValueError(
        f"no attention kernel for {dtype} with head sizes {key_size} and {value_size}: it takes float16, bfloat16 and "
        f"float32 up to {MAX_HEAD_SIZE}; use forest_attention."
    )


def forest_attention_triton(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    metadata: AttentionMetadata,
    window: LayerWindow,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    config: KernelConfig | None = None,
) -> torch.Tensor:
    """`forest_attention` as one kernel launch, without gradients.

    Args:
        query: [1, H, N, Dk], rotated; float16, bfloat16 or float32, Dk <= 256; heads and nodes in any strides.
        key: [1, Hkv, M, Dk], rotated, Hkv a divisor of H; the rows kept from earlier rounds, then the N nodes.
        value: [1, Hkv, M, Dv], Dv <= 256.
        prefix: keys [1, Hkv, P, Dk] and values [1, Hkv, P, Dv], or None where P is 0.
        metadata: which nodes see which; keeps the block map for the next layer.
        window: the layer's window, by positions.
        scaling: factor of the logits, above 0.
        softcap: logits become softcap * tanh(logits / softcap); above 0.
        sinks: [H], one logit a head that takes part in the softmax and has no value.
        config: tile sizes and launch options; by `kernel_config` where None.

    Returns:
        [1, N, H, Dv], contiguous, in the query's dtype.

    Raises:
        ValueError: a layer that `kernel_supports` denies, or a prefix of another length than the metadata's.
    """
    if not kernel_supports(query, key, value, scaling, softcap):
        raise ValueError(
            f"the attention kernel takes one row of float16, bfloat16 or float32 with head sizes up to "
            f"{MAX_HEAD_SIZE}, query heads a multiple of key heads, scaling and softcap above 0, not query "
            f"{tuple(query.shape)} {query.dtype}, key {tuple(key.shape)} {key.dtype}, value {tuple(value.shape)} "
            f"{value.dtype}, scaling={scaling}, softcap={softcap}: use forest_attention."
        )
    if config is None:
        config = kernel_config(query.dtype, query.shape[3], value.shape[3], query.device)
    group = query.shape[1] // key.shape[1]
    shape = TileShape(config.block_m, config.block_n, config.block_p, group)
    block_map = metadata.once(make_block_map, window, shape, query.device)
    prefix_key, prefix_value = (None, None) if prefix is None else prefix
    held = 0 if prefix_key is None else prefix_key.shape[2]
    if held != block_map.prefix_length:
        raise ValueError(
            f"a prefix of {held} tokens was given, but the metadata speaks of {block_map.prefix_length}: make it anew."
        )
    attended: torch.Tensor = torch.ops.decodner.forest_attention(
        query, key, value, prefix_key, prefix_value, block_map.tables, block_map.limited,
        scaling, softcap, sinks, [int(setting) for setting in astuple(config)],
    )  # fmt: skip
    return attended


@torch.library.custom_op("decodner::forest_attention", mutates_args=())
def _forest_attention_operator(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix_key: torch.Tensor | None,
    prefix_value: torch.Tensor | None,
    tables: torch.Tensor,
    limited: bool,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    config: Sequence[int],
) -> torch.Tensor:
    """The kernel's launch; `config` are the fields of a `KernelConfig`, `tables` those of `BlockMap`."""
    _, heads, num_nodes, key_size = query.shape
    kv_heads, num_keys, value_size = key.shape[1], key.shape[2], value.shape[3]
    query = _unit_stride(query)
    out = query.new_empty(1, num_nodes, heads, value_size)
    if not num_nodes:
        return out
    prefix_length = 0
    prefix = [key, value]  # never read where P is 0
    if prefix_key is not None and prefix_value is not None and prefix_key.shape[2]:
        prefix_length, prefix = prefix_key.shape[2], [prefix_key, prefix_value]
    setting = KernelConfig(*config)  # type: ignore[arg-type]  # an operator takes integers only
    operands = [_unit_stride(tensor) for tensor in (key, value, *prefix)]
    strides = [stride for tensor in (query, *operands) for stride in tensor.stride()[1:3]]
    tma = setting.tma and all(map(_is_aligned, operands))
    sources = operands[:2] + operands  # forest for partial tiles, forest for full ones, prefix
    if tma:
        blocks = [setting.block_n] * 2 + [setting.block_p] * 4
        sources = [_descriptor(tensor, block) for tensor, block in zip(sources, blocks, strict=True)]
    programs = count_query_tiles(num_nodes, heads // kv_heads, setting.block_m) * kv_heads
    splits = 1 if limited else _splits(programs, prefix_length, setting.resident, query.device)
    kept = splits if splits > 1 else 0
    parts = query.new_empty(kept, num_nodes, heads, value_size, dtype=torch.float32)
    lse = query.new_empty(kept, num_nodes, heads, dtype=torch.float32)
    with torch.cuda.device_of(query):  # Triton launches on the current device
        forest_attention_kernel[(programs, splits)](
            query, *sources, query if sinks is None else sinks, out, parts, lse, tables,
            *strides, num_nodes, num_keys, kv_heads, splits,
            scale=LOG2_E if softcap is not None else scaling * LOG2_E,
            cap=1.0 if softcap is None else softcap,
            cap_scale=1.0 if softcap is None else scaling / softcap,
            GROUP=heads // kv_heads, HEAD_DIM_K=key_size, HEAD_DIM_V=value_size,
            BLOCK_DK=_padded(key_size), BLOCK_DV=_padded(value_size),
            BLOCK_M=setting.block_m, BLOCK_N=setting.block_n, BLOCK_P=setting.block_p,
            WINDOWED=limited, CAPPED=softcap is not None, SINKS=sinks is not None,
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32", TMA=tma,
            num_warps=setting.num_warps, num_stages=setting.num_stages, maxnreg=setting.max_registers,
        )  # fmt: skip
        if splits > 1:
            rows = num_nodes * heads
            merge_splits_kernel[(-(-rows // MERGED_ROWS),)](
                parts, lse, out, rows, splits,
                HEAD_DIM=value_size, BLOCK_D=_padded(value_size), BLOCK_ROWS=MERGED_ROWS,
            )  # fmt: skip
    return out


def _splits(programs: int, prefix_length: int, resident: int, device: torch.device) -> int:
    """Among how many programs a query tile's prefix is divided, so that all of them fill the device."""
    on_gpu = device.type == "cuda"
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 1
    return max(1, min(resident * multiprocessors // programs, prefix_length // MIN_SPLIT))


@_forest_attention_operator.register_fake
def _forest_attention_shape(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: object
) -> torch.Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


def _padded(head_size: int) -> int:
    """The power of two, 16 at least, that holds a head."""
    return max(MIN_DOT, 1 << (head_size - 1).bit_length())


def _unit_stride(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def _is_aligned(tensor: torch.Tensor) -> bool:
    """Whether rows start at multiples of 16 bytes, as tensor descriptors demand."""
    starts = (tensor.data_ptr(), *(stride * tensor.itemsize for stride in tensor.stride()[1:3]))
    return all(start % 16 == 0 for start in starts)


def _descriptor(tensor: torch.Tensor, rows: int) -> TensorDescriptor:
    """Of a tensor [1, heads, rows, D], for tiles of one head and `rows` rows; what lies outside reads as zero."""
    block = [1, rows, _padded(tensor.shape[3])]
    return TensorDescriptor(tensor[0], list(tensor.shape[1:]), list(tensor.stride()[1:]), block)
