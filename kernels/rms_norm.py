"""y[i] = weight · round(x[r] · (mean x[r]² + eps)^(−1/2)), r = rows[i] or i, with mean and scale in float32.

Floor: 2·n·d·itemsize bytes. At 3.0 TB/s (H100), n = 40,000 and d = 4096 in bfloat16 take 0.22 ms.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import each, tile

# The most elements per program. A wider row has a program of its own.
TILES = {4: each("elements num_warps", (4096, 4), (2048, 4), (4096, 8), (8192, 8))}


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    x, weight, rows, out, x_stride, n_x, n, d, eps,
    BY_INDEX: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # int64, because n · d exceeds 2^31 in one wave of a large model.
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    wanted, inside = i < n, column < d
    r = i
    if BY_INDEX:
        r = tl.load(rows + i, mask=wanted, other=0)
    there = (r >= 0) & (r < n_x)
    mask = (wanted & there)[:, None] & inside[None, :]
    stored = tl.load(x + r[:, None] * x_stride + column[None, :], mask=mask, other=0.0)
    wide = stored.to(tl.float32)
    # Rounded to nearest as in torch: Triton's default root and quotient are approximations on a GPU.
    scale = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(wide * wide, 1) / d + eps))
    # Checking row numbers on the host would stall every layer.
    scale = tl.where(there, scale, float("nan"))
    scaled = (wide * scale[:, None]).to(stored.dtype).to(tl.float32)
    y = scaled * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(out + i[:, None] * d + column[None, :], y.to(stored.dtype), mask=wanted[:, None] & inside[None, :])


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float, rows: Tensor | None) -> Tensor:
    """Launch for x (N, d), weight (d,), rows (n,) or None. Rows out of range become NaN."""
    x = x if x.stride(1) == 1 else x.contiguous()
    n, d = x.shape[0] if rows is None else rows.shape[0], x.shape[1]
    out = torch.empty(n, d, dtype=x.dtype, device=x.device)
    if out.numel():
        taken = tile("rms_norm", TILES, x)
        columns = triton.next_power_of_2(d)
        together = max(1, taken["elements"] // columns)
        named = (x, weight.contiguous(), x if rows is None else rows.contiguous(), out)
        _kernel[(triton.cdiv(n, together),)](
            *named, x.stride(0), x.shape[0], n, d, eps,
            BY_INDEX=rows is not None, ROWS=together, COLUMNS=columns,
            num_warps=taken["num_warps"] if columns <= 8192 else 16,
        )  # fmt: skip
    return out
