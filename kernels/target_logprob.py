"""log p(t_i) = a[t_i] − log Σ_v exp(a[v]),  a = cap(x_i Uᵀ + b),  x = norm(h), for one chunk of rows after another.

    norm:     x[i] = norm(h[i]), statistics in float32, one program per row
    products: x Uᵀ of a chunk of rows by torch.mm, in float32
    reduce:   one program per row of products: bias, cap, log Σ exp and the target's logit in one pass

Floor: 2·R·V·d floating-point operations, and 8·R·V bytes to write and read the products once. R = 20,000, V = 50400
and d = 4096 in bfloat16 take 8.3 TFLOP (11 ms at 750 TFLOP/s) and 8.1 GB (2.7 ms at 3.0 TB/s, H100). Of the (R, V)
logits, only one chunk's 256 MB is in memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import each, tile

LOGIT_BYTES = 256 * 2**20  # products of one chunk: enough rows for the matrix units
# Words of the vocabulary per step of a row's program.
TILES = {4: each("vocab num_warps", (2048, 8), (4096, 8), (1024, 4), (4096, 16))}


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
def _capped(a, softcap):  # type: ignore[no-untyped-def]
    """softcap · tanh(a / softcap), from an exponential that cannot overflow: Triton's own tanh needs CUDA."""
    shrunk = tl.exp(-2.0 * tl.abs(a) / softcap)
    size = softcap * (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(a < 0.0, -size, size)


@triton.jit
def _reduce_kernel(  # type: ignore[no-untyped-def]
    products, bias, target, logprob, lse, vocab, softcap,
    HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr, VOCAB: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start = products + row * vocab
    # One exponential per logit: the lanes share the largest logit and keep separate sums.
    top = float("-inf")
    total = tl.zeros((VOCAB,), tl.float32)
    for first in range(0, vocab, VOCAB):
        v = first + tl.arange(0, VOCAB)
        inside = v < vocab
        a = tl.load(start + v, mask=inside, other=0.0)
        if HAS_BIAS:
            a += tl.load(bias + v, mask=inside, other=0.0).to(tl.float32)
        if CAPPED:
            a = _capped(a, softcap)
        a = tl.where(inside, a, float("-inf"))
        new_top = tl.maximum(top, tl.max(a, 0))
        # Where every logit is −inf, exp(−inf − −inf) would be NaN.
        level = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp(top - level) + tl.exp(a - level)
        top = new_top
    sum_log = top + tl.log(tl.sum(total, 0))
    # A target outside the vocabulary gives NaN, because checking it on the host would stall the sweep.
    t = tl.load(target + row)
    inside = (t >= 0) & (t < vocab)
    hit = tl.load(start + t, mask=inside, other=0.0)
    if HAS_BIAS:
        hit += tl.load(bias + t, mask=inside, other=0.0).to(tl.float32)
    if CAPPED:
        hit = _capped(hit, softcap)
    tl.store(logprob + row, tl.where(inside, hit - sum_log, float("nan")))
    tl.store(lse + row, sum_log)


def products_of(x: Tensor, unembed: Tensor) -> Tensor:
    """x Uᵀ for x (R, d), unembed (V, d) of one dtype: (R, V) float32, never rounded to that dtype."""
    if x.dtype == torch.float32:
        return x @ unembed.T
    if x.device.type == "cuda":
        return torch.mm(x, unembed.T, out_dtype=torch.float32)
    return x.float() @ unembed.T.float()  # in Triton's interpreter


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
    run = max(128, LOGIT_BYTES // (4 * vocab) // 128 * 128)
    for begin in range(0, rows, run):
        part = slice(begin, begin + run)
        products = products_of(x[part], unembed)
        _reduce_kernel[(len(products),)](
            products, unembed if bias is None else bias.contiguous(), target[part], logprob[part], lse[part],
            vocab, softcap or 0.0,
            HAS_BIAS=bias is not None, CAPPED=softcap is not None,
            VOCAB=taken["vocab"], num_warps=taken["num_warps"],
        )  # fmt: skip
    return logprob, lse
