"""out[i] = weight[ids[i]] + sigma[i] · z(seed, fact_key[i], sample[i], token[i]).

    w0 … w3 = Philox4x32-10(counter = (c, token + 2^16 sample, fact low, fact high), key = seed low, high)
    u = (w + 1/2) / 2^32
    z[4c … 4c+3] = √(-2 ln u0) cos 2πu1, √(-2 ln u0) sin 2πu1, √(-2 ln u2) cos 2πu3, √(-2 ln u2) sin 2πu3

Floor: 2·R·d·itemsize bytes, because each row is read and written once (repeated ids come from L2), and 36·R bytes of
row numbers. A noisy value takes some 30 integer operations and half a float64 log, root, sine and cosine.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import each, tile

# Calls of the generator per program; each gives four values.
TILES = {4: each("quads num_warps", (256, 4), (128, 4), (256, 8), (64, 2))}

TWO_PI = tl.constexpr(6.283185307179586)


@triton.jit
def _box_muller(radius_word, angle_word):  # type: ignore[no-untyped-def]
    scale: tl.constexpr = 2.3283064365386963e-10  # 2^-32, exact
    u = (radius_word.to(tl.float64) + 0.5) * scale
    angle = (angle_word.to(tl.float64) + 0.5) * scale * TWO_PI
    radius = tl.sqrt(-2.0 * tl.log(u))
    return (radius * tl.cos(angle)).to(tl.float32), (radius * tl.sin(angle)).to(tl.float32)


@triton.jit(do_not_specialize=["seed_low", "seed_high"])
def _kernel(  # type: ignore[no-untyped-def]
    weight, weight_stride, ids, sigma, fact_key, sample, token, out, seed_low, seed_high, d,
    QUADS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    quad = tl.program_id(1) * QUADS + tl.arange(0, QUADS)
    dim = tl.program_id(1) * (4 * QUADS) + tl.arange(0, 4 * QUADS)
    inside = dim < d
    x = tl.load(weight + tl.load(ids + row) * weight_stride + dim, mask=inside, other=0.0)
    s = tl.load(sigma + row)
    if s != 0.0:
        fact = tl.load(fact_key + row)
        place = (tl.load(token + row) + (tl.load(sample + row) << 16)).to(tl.uint32)
        zero = tl.zeros((QUADS,), tl.uint32)
        w0, w1, w2, w3 = tl.philox_impl(
            quad.to(tl.uint32),
            zero + place,
            zero + fact.to(tl.uint32),
            zero + (fact >> 32).to(tl.uint32),
            zero + seed_low.to(tl.uint32),
            zero + seed_high.to(tl.uint32),
            10,
        )
        z0, z1 = _box_muller(w0, w1)
        z2, z3 = _box_muller(w2, w3)
        z = tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))
        # The float64 product is exact, so a fused multiply-add rounds as the reference's two steps do.
        y = x.to(tl.float64) + s.to(tl.float64) * z.to(tl.float64)
        if x.dtype != tl.float64:
            y = y.to(tl.float32)
        x = y.to(x.dtype)
    tl.store(out + row * d + dim, x, mask=inside)


def noised_embed_triton(
    weight: Tensor,
    ids: Tensor,
    sigma: Tensor,
    fact_key: Tensor,
    sample: Tensor,
    token: Tensor,
    seed: int,
) -> Tensor:
    """Launch for weight (V, d) and the other tensors (R,). A program handles a tile of one row's dimensions."""
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    ids, sigma, fact_key, sample, token = (t.contiguous() for t in (ids, sigma, fact_key, sample, token))
    rows, d = ids.shape[0], weight.shape[1]
    out = torch.empty(rows, d, dtype=weight.dtype, device=weight.device)
    if out.numel():
        taken = tile("noised_embed", TILES, weight)
        quads = min(taken["quads"], triton.next_power_of_2(-(-d // 4)))
        grid = (rows, triton.cdiv(d, 4 * quads))
        names = (ids, sigma, fact_key, sample, token)
        halves = (seed & 0xFFFFFFFF, seed >> 32)
        _kernel[grid](weight, weight.stride(0), *names, out, *halves, d, QUADS=quads, num_warps=taken["num_warps"])
    return out
