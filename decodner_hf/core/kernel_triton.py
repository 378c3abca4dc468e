# mypy: ignore-errors
# Triton kernels are a language of their own.
"""The GPU kernel for the attention of a token forest over a shared prefix: online softmax, forward only.

In: pointers or tensor descriptors and the tables of `BlockMap`. Out: attended values, written in place.
Online softmax: Milakov and Gimelshein, arXiv:1805.02867.
Every query row reads its forest tiles, then the prefix, in one launch; tiles that all rows see whole need no mask
arithmetic. Knows nothing of torch; its launcher chooses tile sizes. Needs Triton.
"""

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the fused attention kernel needs Triton: pip install triton") from error


@triton.jit
def _tanh(x):
    """A series near 0, where the quotient below would lose digits; exp2 of a negative number elsewhere."""
    size = tl.abs(x)
    square = x * x
    near = size * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    decay = tl.exp2(size * -2.8853900817779268)
    tanh = tl.where(size < 0.3, near, (1 - decay) / (1 + decay))
    return tl.where(x < 0, -tanh, tanh)


@triton.jit
def _load_rows(
    source,  # a descriptor of [heads, rows, HEAD_DIM] where TMA, else a pointer to it
    head,
    start,  # first row
    stride_head,
    stride_row,
    inside,  # bool [ROWS], read where CHECKED
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHECKED: tl.constexpr,
    TMA: tl.constexpr,
):
    """[ROWS, BLOCK_D]: one head's rows start .. start + ROWS - 1, zero where the rows or the head size end."""
    if TMA:
        rows = source.load([head, start, 0]).reshape([ROWS, BLOCK_D])
    else:
        offs_d = tl.arange(0, BLOCK_D)
        base_ptr = source + tl.cast(head, tl.int64) * stride_head + tl.cast(start, tl.int64) * stride_row
        ptrs = base_ptr + (tl.arange(0, ROWS)[:, None] * stride_row + offs_d[None, :])
        if CHECKED and BLOCK_D > HEAD_DIM:
            rows = tl.load(ptrs, mask=inside[:, None] & (offs_d < HEAD_DIM)[None, :], other=0.0)
        elif CHECKED:
            rows = tl.load(ptrs, mask=inside[:, None], other=0.0)
        elif BLOCK_D > HEAD_DIM:
            rows = tl.load(ptrs, mask=(offs_d < HEAD_DIM)[None, :], other=0.0)
        else:
            rows = tl.load(ptrs)
    return rows


@triton.jit
def _step(
    acc,  # [BLOCK_M, BLOCK_DV]
    l_i,  # [BLOCK_M]
    m_i,  # [BLOCK_M]
    q,  # [BLOCK_M, BLOCK_DK]
    k,  # [BLOCK, BLOCK_DK]
    v,  # [BLOCK, BLOCK_DV]
    seen,  # bool [BLOCK_M, BLOCK], read where MASKED
    scale,  # from qk, or from softcapped logits, to base-2 logits
    cap,
    cap_scale,  # scaling / softcap
    MASKED: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of keys in the online softmax, whose maxima are finite from the start."""
    qk = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if CAPPED:
        qk = cap * _tanh(qk * cap_scale)
    if MASKED:
        qk = tl.where(seen, qk, float("-inf"))
    m_new = tl.maximum(m_i, tl.max(qk, 1) * scale)
    p = tl.exp2(qk * scale - m_new[:, None])
    alpha = tl.exp2(m_i - m_new)
    l_i = l_i * alpha + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
    return acc, l_i, m_new


@triton.jit(do_not_specialize=["num_nodes", "num_keys", "splits"])
def forest_attention_kernel(
    q_ptr,  # [H, N, HEAD_DIM_K]
    k,  # descriptor or pointer, [Hkv, M, HEAD_DIM_K], the kept rows, then the nodes
    v,  # descriptor or pointer, [Hkv, M, HEAD_DIM_V]
    fk,  # as k, for tiles of BLOCK_P rows
    fv,  # as v, for tiles of BLOCK_P rows
    pk,  # descriptor or pointer, [Hkv, P, HEAD_DIM_K]
    pv,  # descriptor or pointer, [Hkv, P, HEAD_DIM_V]
    sinks_ptr,  # [H]
    out_ptr,  # [N, H, HEAD_DIM_V], contiguous
    part_ptr,  # float32 [splits, N, H, HEAD_DIM_V], contiguous, where there are several splits
    lse_ptr,  # float32 [splits, N, H], likewise
    tables_ptr,  # BlockMap.tables
    stride_qh,
    stride_qn,
    stride_kh,
    stride_kn,
    stride_vh,
    stride_vn,
    stride_pkh,
    stride_pkn,
    stride_pvh,
    stride_pvn,
    num_nodes,  # N
    num_keys,  # M
    kv_heads,
    splits,  # programs among which the prefix of a query tile is divided
    scale,  # see _step
    cap,
    cap_scale,
    GROUP: tl.constexpr,
    HEAD_DIM_K: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
):
    """softmax(q k^T * scaling) v over what each node sees: its prefix entries and its ancestors, itself included.

    One program is one query tile and one key/value head. A row of the tile is a node and one of the GROUP query heads
    that share the key/value head, so that a key tile is read once for all of them. With logits in base 2, one fused
    multiply-add and one exp2 an element are all that a full tile costs besides its two products.
    Where there are several splits, each takes its part of the prefix tiles without a mask, the last also all other
    tiles, and `merge_splits_kernel` joins what they computed (as flash decoding does: arXiv 2311.01282).
    """
    split = tl.program_id(1)
    kv_head = tl.program_id(0) % kv_heads
    entry = tables_ptr + tl.program_id(0) // kv_heads * 8
    numbers_ptr = tables_ptr + tl.num_programs(0) // kv_heads * 8
    starts_ptr = numbers_ptr + num_keys * (4 if WINDOWED else 2)
    rows = tl.load(entry) * BLOCK_M + tl.arange(0, BLOCK_M)
    partial_start, partial_end, full_start, full_end = (
        tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3), tl.load(entry + 4)
    )  # fmt: skip
    prefix_length = tl.load(entry + 7)
    is_last = (split == splits - 1).to(tl.int32)
    partial_end = partial_start + (partial_end - partial_start) * is_last
    full_end = full_start + (full_end - full_start) * is_last
    node = rows // GROUP
    exists = node < num_nodes
    head = kv_head * GROUP + rows % GROUP
    offs_dk = tl.arange(0, BLOCK_DK)
    q_ptrs = q_ptr + (head.to(tl.int64) * stride_qh + node.to(tl.int64) * stride_qn)[:, None] + offs_dk[None, :]
    q = tl.load(q_ptrs, mask=exists[:, None] & (offs_dk < HEAD_DIM_K)[None, :], other=0.0)
    own_row = num_keys - num_nodes + node
    number = tl.load(numbers_ptr + own_row, mask=exists, other=-1)
    lowest = node
    if WINDOWED:
        lowest = tl.load(numbers_ptr + 3 * num_keys + own_row, mask=exists, other=0)

    acc = tl.zeros([BLOCK_M, BLOCK_DV], dtype=tl.float32)
    # Finite, for -inf less -inf would be NaN in a tile of which a row sees nothing.
    m_i = tl.full([BLOCK_M], -1e30, dtype=tl.float32)
    l_i = tl.zeros([BLOCK_M], dtype=tl.float32)
    if SINKS:
        sink = tl.load(sinks_ptr + head).to(tl.float32) * 1.4426950408889634
        m_i = tl.where(is_last == 1, tl.maximum(sink, m_i), m_i)
        l_i += 1.0  # of weight 0 in the other splits

    for index in tl.range(partial_start, partial_end, num_stages=1):
        start = tl.load(starts_ptr + index)
        offs_j = start + tl.arange(0, BLOCK_N)
        inside = offs_j >= 0
        number_j = tl.load(numbers_ptr + offs_j, mask=inside, other=0)
        end_j = tl.load(numbers_ptr + num_keys + offs_j, mask=inside, other=-1)
        seen = (number_j[None, :] <= number[:, None]) & (number[:, None] <= end_j[None, :])
        if WINDOWED:
            position_j = tl.load(numbers_ptr + 2 * num_keys + offs_j, mask=inside, other=-1)
            seen = seen & (position_j[None, :] >= lowest[:, None])
        k_tile = _load_rows(k, kv_head, start, stride_kh, stride_kn, inside, BLOCK_N, HEAD_DIM_K, BLOCK_DK, True, TMA)
        v_tile = _load_rows(v, kv_head, start, stride_vh, stride_vn, inside, BLOCK_N, HEAD_DIM_V, BLOCK_DV, True, TMA)
        acc, l_i, m_i = _step(acc, l_i, m_i, q, k_tile, v_tile, seen, scale, cap, cap_scale, True, CAPPED, PRECISION)

    for index in range(full_start, full_end):
        start = tl.load(starts_ptr + index)
        k_tile = _load_rows(
            fk, kv_head, start, stride_kh, stride_kn, exists, BLOCK_P, HEAD_DIM_K, BLOCK_DK, False, TMA
        )
        v_tile = _load_rows(
            fv, kv_head, start, stride_vh, stride_vn, exists, BLOCK_P, HEAD_DIM_V, BLOCK_DV, False, TMA
        )
        acc, l_i, m_i = _step(
            acc, l_i, m_i, q, k_tile, v_tile, exists, scale, cap, cap_scale, False, CAPPED, PRECISION
        )

    windowed_start, unmasked_start = tl.load(entry + 5), tl.load(entry + 6)
    whole_end = prefix_length // BLOCK_P * BLOCK_P
    windowed_tiles = (unmasked_start - windowed_start) // BLOCK_P
    masked_tiles = windowed_tiles + (prefix_length > whole_end).to(tl.int32)  # the last is what is left of the prefix
    masked_tiles = masked_tiles * is_last
    for index in tl.range(0, masked_tiles, num_stages=1):
        start = tl.where(index < windowed_tiles, windowed_start + index * BLOCK_P, whole_end)
        offs_p = start + tl.arange(0, BLOCK_P)
        inside = offs_p < prefix_length
        seen = inside[None, :] & (node >= 0)[:, None]
        if WINDOWED:
            seen = seen & (offs_p[None, :] >= lowest[:, None])
        k_tile = _load_rows(
            pk, kv_head, start, stride_pkh, stride_pkn, inside, BLOCK_P, HEAD_DIM_K, BLOCK_DK, True, TMA
        )
        v_tile = _load_rows(
            pv, kv_head, start, stride_pvh, stride_pvn, inside, BLOCK_P, HEAD_DIM_V, BLOCK_DV, True, TMA
        )
        if TMA:
            v_tile = tl.where(inside[:, None], v_tile, 0.0)  # a buffer may hold anything, NaN too, after the prefix
        acc, l_i, m_i = _step(acc, l_i, m_i, q, k_tile, v_tile, seen, scale, cap, cap_scale, True, CAPPED, PRECISION)

    share = tl.cdiv((whole_end - unmasked_start) // BLOCK_P, splits) * BLOCK_P
    share_start = unmasked_start + split * share
    for start in range(share_start, tl.minimum(share_start + share, whole_end), BLOCK_P):
        k_tile = _load_rows(
            pk, kv_head, start, stride_pkh, stride_pkn, exists, BLOCK_P, HEAD_DIM_K, BLOCK_DK, False, TMA
        )
        v_tile = _load_rows(
            pv, kv_head, start, stride_pvh, stride_pvn, exists, BLOCK_P, HEAD_DIM_V, BLOCK_DV, False, TMA
        )
        acc, l_i, m_i = _step(
            acc, l_i, m_i, q, k_tile, v_tile, exists, scale, cap, cap_scale, False, CAPPED, PRECISION
        )

    offs_dv = tl.arange(0, BLOCK_DV)
    row = node.to(tl.int64) * (kv_heads * GROUP) + head
    kept = exists[:, None] & (offs_dv < HEAD_DIM_V)[None, :]
    attended = acc / tl.where(l_i > 0, l_i, 1.0)[:, None]  # a split may have nothing to attend to
    if splits == 1:
        out_rows = out_ptr + row * HEAD_DIM_V
        tl.store(out_rows[:, None] + offs_dv[None, :], attended.to(out_ptr.dtype.element_ty), mask=kept)
    else:
        row += split.to(tl.int64) * num_nodes * (kv_heads * GROUP)
        part_rows = part_ptr + row * HEAD_DIM_V
        tl.store(part_rows[:, None] + offs_dv[None, :], attended, mask=kept)
        tl.store(lse_ptr + row, m_i + tl.log2(l_i), mask=exists)


@triton.jit(do_not_specialize=["rows", "splits"])
def merge_splits_kernel(
    part_ptr,  # float32 [splits, N * H, HEAD_DIM]
    lse_ptr,  # float32 [splits, N * H], base-2 logarithms of the sums of weights; -inf where there is none
    out_ptr,  # [N * H, HEAD_DIM]
    rows,  # N * H
    splits,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """What attention over all splits gives: the splits' results, weighted by their sums of weights."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    exists = row < rows
    kept = exists[:, None] & (offs_d < HEAD_DIM)[None, :]
    acc = tl.zeros([BLOCK_ROWS, BLOCK_D], dtype=tl.float32)
    m_i = tl.full([BLOCK_ROWS], -1e30, dtype=tl.float32)
    l_i = tl.zeros([BLOCK_ROWS], dtype=tl.float32)
    for split in range(0, splits):
        source = tl.cast(split, tl.int64) * rows + row
        lse = tl.load(lse_ptr + source, mask=exists, other=0.0)
        part = tl.load(part_ptr + source[:, None] * HEAD_DIM + offs_d[None, :], mask=kept, other=0.0)
        m_new = tl.maximum(m_i, lse)
        alpha, weight = tl.exp2(m_i - m_new), tl.exp2(lse - m_new)
        acc = acc * alpha[:, None] + part * weight[:, None]
        l_i = l_i * alpha + weight
        m_i = m_new
    merged = acc / l_i[:, None]
    tl.store(out_ptr + row[:, None] * HEAD_DIM + offs_d[None, :], merged.to(out_ptr.dtype.element_ty), mask=kept)
