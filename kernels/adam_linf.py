"""A step of Adam on (delta, m, v) with G = Σ_r g[r] k[r]ᵀ, and the clamp of delta to ± limit, tile by tile.

Floor: 24·P·d·n bytes (delta, m and v, each read and written); the factors come from L2. G takes 2·R/P operations per
element. At 4.8 TB/s (H200), P = 32, d = 4096, n = 14336 and 15 rows per item take 9.4 ms. The float32 products alone
would take 0.8 ms at 67 TFLOP/s.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import each, tile

# Rows and columns of a weight per program.
TILES = {4: each("rows columns num_warps", (32, 128, 8), (16, 128, 4), (32, 64, 4), (16, 256, 8))}
ROWS = 16  # rows of the factors multiplied at once, the least that tl.dot accepts


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    delta, m, v, g, k, begin, items, d, n, g_stride, k_stride, first, beta2, second, size, root, eps, limit,
    D: tl.constexpr, N: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    across, down = tl.cdiv(n, N), tl.cdiv(d, D)
    program = tl.program_id(0)
    item = tl.load(items + program // (across * down))
    # int64, because P · d · n exceeds 2^31 for a few items of a large model.
    i = (program // across % down).to(tl.int64) * D + tl.arange(0, D)
    j = (program % across) * N + tl.arange(0, N)
    past = tl.load(begin + item + 1)
    G = tl.zeros((D, N), dtype=tl.float32)
    for row in range(tl.load(begin + item), past, R):
        r = row + tl.arange(0, R)
        a = tl.load(g + r[None, :] * g_stride + i[:, None], mask=(r < past)[None, :] & (i < d)[:, None], other=0.0)
        b = tl.load(k + r[:, None] * k_stride + j[None, :], mask=(r < past)[:, None] & (j < n)[None, :], other=0.0)
        G = tl.dot(a.to(tl.float32), b.to(tl.float32), G, input_precision="ieee")
    place = (item * d + i[:, None]) * n + j[None, :]
    inside = (i < d)[:, None] & (j < n)[None, :]
    mean = tl.load(m + place, mask=inside, other=0.0)
    mean += first * (G - mean)
    square = beta2 * tl.load(v + place, mask=inside, other=0.0) + second * G * G
    moved = tl.load(delta + place, mask=inside, other=0.0) - size * mean / (tl.sqrt(square) / root + eps)
    # Written so that a NaN stays NaN.
    moved = tl.where(moved < -limit, -limit, moved)
    moved = tl.where(moved > limit, limit, moved)
    tl.store(m + place, mean, mask=inside)
    tl.store(v + place, square, mask=inside)
    tl.store(delta + place, moved, mask=inside)


def adam_linf_triton(
    delta: Tensor,
    m: Tensor,
    v: Tensor,
    g: Tensor,
    k: Tensor,
    begin: Tensor,
    active: Tensor | None,
    step: int,
    lr: float,
    limit: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Launch for delta, m, v (P, d, n), g (R, d), k (R, n), begin (P + 1,). limit: infinite for no clamp."""
    items = torch.arange(len(delta)) if active is None else active.nonzero()[:, 0]
    _, d, n = delta.shape
    taken = tile("adam_linf", TILES, delta, f"of {str(g.dtype).removeprefix('torch.')}")
    tiles = triton.cdiv(d, taken["rows"]) * triton.cdiv(n, taken["columns"])
    if len(items) * tiles == 0:
        return
    named = (delta, m, v, g, k, begin.to(delta.device), items.to(delta.device))
    numbers = (1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step), math.sqrt(1 - beta2**step), eps, limit)
    sizes = (d, n, g.stride(0), k.stride(0))
    across = {"D": taken["rows"], "N": taken["columns"], "num_warps": taken["num_warps"]}
    _kernel[(len(items) * tiles,)](*named, *sizes, *numbers, R=ROWS, **across)
