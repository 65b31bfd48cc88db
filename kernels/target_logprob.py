"""log p(t_i) = a[t_i] − log Σ_v exp(a[v]),  a = cap(x_i Uᵀ + b),  x = norm(h), in three launches.

    norm:   x[i] = norm(h[i]), statistics in float32, one program a row
    blocks: one program a (block of rows, share of the vocabulary); over its tiles of logits a = cap(x Uᵀ + b):
            m' = max(m, max a),  s' = s exp(m − m') + Σ exp(a − m'),  hit += Σ a [v = t]
    merge:  log Σ = M + log Σ_share s exp(m − M),  M = max m

Floor: 2·R·V·d floating-point operations and (R + V)·d·itemsize bytes, as long as the rows fit in L2: for
R = 512, V = 50400, d = 4096 in bfloat16 211 GFLOP (0.21 ms at 990 TFLOP/s) and 417 MB (0.09 ms at 4.8 TB/s).
No logit is written: 3 · shares · R floats are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import each, tile

# Rows, words and dimensions of a product: in float32 they take twice the shared memory, and no matrix unit.
SIZES = "rows vocab dims num_warps num_stages"
TILES = {
    2: each(SIZES, (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (64, 256, 64, 8, 3), (64, 128, 64, 4, 4)),
    4: each(SIZES, (64, 64, 32, 4, 3), (64, 128, 16, 8, 3), (128, 64, 16, 8, 3), (32, 64, 32, 4, 3)),
}


@triton.jit
def _norm_kernel(  # type: ignore[no-untyped-def]
    h, weight, bias, x, h_stride, d, eps,
    LAYER: tl.constexpr, HAS_BIAS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < d
    v = tl.load(h + row * h_stride + column, mask=inside, other=0.0)
    w = tl.load(weight + column, mask=inside, other=0.0)
    dtype: tl.constexpr = v.dtype
    v = v.to(tl.float32)
    if LAYER:
        v = tl.where(inside, v - tl.sum(v, 0) / d, 0.0)
    v = v * tl.rsqrt(tl.sum(v * v, 0) / d + eps)
    if LAYER:
        v = v * w.to(tl.float32)
        if HAS_BIAS:
            v += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    else:
        # RMS norms round before the weight is applied.
        v = v.to(dtype).to(tl.float32) * w.to(tl.float32)
    tl.store(x + row * d + column, v.to(dtype), mask=inside)


@triton.jit
def _blocks_kernel(  # type: ignore[no-untyped-def]
    x, unembed, bias, target, part_max, part_sum, part_hit, rows, vocab, d, u_stride, share, softcap,
    HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr, ROWS: tl.constexpr, VOCAB: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    # Axis 0 is the rows: programs that run together then read the same share of U, once from memory.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_inside = row < rows
    t = tl.load(target + row, mask=row_inside, other=-1)
    x_row = x + row.to(tl.int64)[:, None] * d
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    hit = tl.zeros((ROWS,), tl.float32)
    begin = tl.program_id(1) * share
    for first in range(begin, tl.minimum(begin + share, vocab), VOCAB):
        v = first + tl.arange(0, VOCAB)
        v_inside = v < vocab
        u_row = unembed + v.to(tl.int64)[None, :] * u_stride
        logits = tl.zeros((ROWS, VOCAB), tl.float32)
        for k in range(0, d, DIMS):
            dim = k + tl.arange(0, DIMS)
            dim_inside = dim < d
            a = tl.load(x_row + dim[None, :], mask=row_inside[:, None] & dim_inside[None, :], other=0.0)
            b = tl.load(u_row + dim[:, None], mask=dim_inside[:, None] & v_inside[None, :], other=0.0)
            # "ieee": TF32 would leave a float32 model with 10-bit products.
            logits = tl.dot(a, b, logits, input_precision="ieee")
        if HAS_BIAS:
            logits += tl.load(bias + v, mask=v_inside, other=0.0).to(tl.float32)[None, :]
        if CAPPED:
            # tanh by an exponential that cannot overflow: Triton's own tanh is CUDA's alone.
            shrunk = tl.exp(-2.0 * tl.abs(logits) / softcap)
            capped = softcap * (1.0 - shrunk) / (1.0 + shrunk)
            logits = tl.where(logits < 0.0, -capped, capped)
        hit += tl.sum(tl.where(v[None, :] == t[:, None], logits, 0.0), 1)
        logits = tl.where(v_inside[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(logits - new_top[:, None]), 1)
        top = new_top
    place = tl.program_id(1).to(tl.int64) * rows + row
    tl.store(part_max + place, top, mask=row_inside)
    tl.store(part_sum + place, total, mask=row_inside)
    tl.store(part_hit + place, hit, mask=row_inside)


@triton.jit
def _merge_kernel(  # type: ignore[no-untyped-def]
    part_max, part_sum, part_hit, logprob, lse, rows, shares, ROWS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    hit = tl.zeros((ROWS,), tl.float32)
    for share in range(0, shares):
        place = tl.cast(share, tl.int64) * rows + row
        m = tl.load(part_max + place, mask=inside, other=0.0)
        s = tl.load(part_sum + place, mask=inside, other=1.0)
        hit += tl.load(part_hit + place, mask=inside, other=0.0)
        new_top = tl.maximum(top, m)
        total = total * tl.exp(top - new_top) + s * tl.exp(m - new_top)
        top = new_top
    sum_log = top + tl.log(total)
    tl.store(logprob + row, hit - sum_log, mask=inside)
    tl.store(lse + row, sum_log, mask=inside)


def target_logprob_triton(
    h: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    kind: str,
    unembed: Tensor,
    bias: Tensor | None,
    target: Tensor,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """(log p, log-sum-exp) for h (R, d), unembed (V, d), target (R,): both (R,) float32."""
    h = h if h.stride(1) == 1 else h.contiguous()
    unembed = unembed if unembed.stride(1) == 1 else unembed.contiguous()
    target, norm_weight = target.contiguous(), norm_weight.contiguous()
    (rows, d), vocab = h.shape, unembed.shape[0]
    logprob = torch.empty(rows, dtype=torch.float32, device=h.device)
    lse = torch.empty_like(logprob)
    if rows == 0:
        return logprob, lse

    x = torch.empty(rows, d, dtype=h.dtype, device=h.device)
    columns = triton.next_power_of_2(d)
    _norm_kernel[(rows,)](
        h, norm_weight, norm_weight if norm_bias is None else norm_bias.contiguous(), x, h.stride(0), d, eps,
        LAYER=kind == "layer", HAS_BIAS=norm_bias is not None, COLUMNS=columns,
        num_warps=8 if columns > 2048 else 4,
    )  # fmt: skip

    taken = tile("target_logprob", TILES, h)
    row_block = min(taken["rows"], max(16, triton.next_power_of_2(rows)))
    vocab_block = taken["vocab"]
    row_blocks, tiles = triton.cdiv(rows, row_block), triton.cdiv(vocab, vocab_block)
    processors = torch.cuda.get_device_properties(h.device).multi_processor_count if h.is_cuda else 2
    # Two programs a multiprocessor, at least two tiles each.
    shares = max(1, min(triton.cdiv(2 * processors, row_blocks), tiles // 2))
    share = triton.cdiv(tiles, shares) * vocab_block
    shares = triton.cdiv(vocab, share)
    parts = torch.empty(3, shares, rows, dtype=torch.float32, device=h.device)
    _blocks_kernel[(row_blocks, shares)](
        x, unembed, unembed if bias is None else bias.contiguous(), target, *parts,
        rows, vocab, d, unembed.stride(0), share, softcap or 0.0,
        HAS_BIAS=bias is not None, CAPPED=softcap is not None, ROWS=row_block, VOCAB=vocab_block, DIMS=taken["dims"],
        num_warps=taken["num_warps"] if row_block == taken["rows"] else 4, num_stages=taken["num_stages"],
    )  # fmt: skip
    _merge_kernel[(triton.cdiv(rows, 128),)](*parts, logprob, lse, rows, shares, ROWS=128)
    return logprob, lse
