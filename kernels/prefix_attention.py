"""out[i] = Σ_j softmax_j(s_ij) v_j over the keys j of query i's sequence, read in place; s_ij as in the op.

One program handles a (sequence, block of its queries, key head). The queries of all heads that share the key head are
stacked in one matrix, so that grouped heads fill the matrix unit. In short sequences several key heads are stacked,
too; a query does not see the keys of another head. Softmax runs online in float32, over blocks of keys:

    m' = max(m, max_j s),  c = exp(m − m'),  z' = c z + Σ_j exp(s_j − m'),  o' = c o + Σ_j exp(s_j − m') v_j

Floor: (2·Nq·H + 2·K·Hkv)·head_dim·itemsize bytes for K distinct rows of k and v (prefixes come from L2), and
4·pairs·H·head_dim operations. The cells of 50 facts in GPT-J (Nq = 70,000, K = 80,000, H = Hkv = 16, head_dim 256,
bfloat16) move 2.5 GB, which takes 0.51 ms at 4.8 TB/s (H200).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import each, tile

# rows: (query, head) rows per program, at least the 16 that tl.dot needs. keys: the most keys per step. A short prompt
# is one step: few warps then hide the wait for memory best, though one warp's rows spill registers (bench/LOG.md).
SIZES = "rows keys num_warps num_stages"
TILES = {
    2: each(SIZES, (16, 32, 4, 1), (16, 32, 4, 2), (16, 16, 2, 1), (16, 16, 1, 1)),
    4: each(SIZES, (16, 32, 4, 1), (16, 32, 4, 2), (16, 16, 4, 1), (16, 16, 2, 1)),
}


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    q, k, v, table, slopes, sinks, out, share, kv_heads, head_dim, blocks, window, scale, softcap,
    CAPPED: tl.constexpr, SLOPED: tl.constexpr, SUNK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    DIMS: tl.constexpr, STACKED: tl.constexpr,
):  # fmt: skip
    # Axis 0 counts (sequence, block), so that the programs of one sequence run together and share its keys in L2.
    sequence, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    # STACKED key heads have OWN_ROWS rows and OWN_KEYS keys each.
    OWN_ROWS: tl.constexpr = ROWS // STACKED
    OWN_KEYS: tl.constexpr = KEYS // STACKED
    row = table + sequence.to(tl.int64) * 8
    q_begin, q_len = tl.load(row), tl.load(row + 1)
    first, n_first = tl.load(row + 2), tl.load(row + 3)
    second, n_second = tl.load(row + 4), tl.load(row + 5)
    tail, n_tail = tl.load(row + 6), tl.load(row + 7)
    if block * OWN_ROWS < q_len * share:
        at, column = tl.arange(0, ROWS), tl.arange(0, KEYS)
        group, key_group = tl.program_id(1) * STACKED + at // OWN_ROWS, tl.program_id(1) * STACKED + column // OWN_KEYS
        number = block * OWN_ROWS + at % OWN_ROWS
        query, head = number // share, group * share + number % share
        asked = (query < q_len) & (group < kv_heads)
        dim = tl.arange(0, DIMS)
        inside = dim < head_dim
        # int64, because rows · heads · head_dim exceeds 2^31 in one wave of a large model.
        q_place = ((q_begin + query) * (kv_heads * share) + head) * head_dim
        a = tl.load(q + q_place[:, None] + dim[None, :], mask=asked[:, None] & inside[None, :], other=0.0)
        before = n_first + n_second
        end = before + n_tail
        position = end - q_len + query  # each query's place among the keys of its sequence
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        mixed = tl.zeros((ROWS, DIMS), tl.float32)
        oldest = end - end
        if window > 0:
            oldest = tl.maximum(oldest, end - q_len + block * OWN_ROWS // share - window + 1)
        newest = tl.minimum(end, end - q_len + ((block + 1) * OWN_ROWS - 1) // share + 1)
        for start in range(oldest, newest, OWN_KEYS):
            j = start + column % OWN_KEYS
            key = tl.where(j < n_first, first + j, tl.where(j < before, second + j - n_first, tail + j - before))
            place = (key * kv_heads + key_group) * head_dim
            there = ((j < newest) & (key_group < kv_heads))[:, None] & inside[None, :]
            # Keys and values are loaded together, so that a program waits for memory once per step.
            b = tl.load(k + place[:, None] + dim[None, :], mask=there, other=0.0)
            c = tl.load(v + place[:, None] + dim[None, :], mask=there, other=0.0)
            # "ieee", because TF32 would round the products of a float32 model to 10 bits.
            s = scale * tl.dot(a, tl.trans(b), input_precision="ieee")
            if CAPPED:
                # tanh from an exponential that cannot overflow, because Triton's own tanh needs CUDA.
                shrunk = tl.exp(-2.0 * tl.abs(s) / softcap)
                capped = softcap * (1.0 - shrunk) / (1.0 + shrunk)
                s = tl.where(s < 0.0, -capped, capped)
            distance = position[:, None] - j[None, :]
            if SLOPED:
                s -= tl.load(slopes + head, mask=asked, other=0.0)[:, None] * distance.to(tl.float32)
            seen = (distance >= 0) & (j < newest)[None, :] & (group[:, None] == key_group[None, :])
            if window > 0:
                seen = seen & (distance < window)
            s = tl.where(seen, s, float("-inf"))
            new_top = tl.maximum(top, tl.max(s, 1))
            # For a row that has seen no key yet, exp(−inf − −inf) would be NaN.
            level = tl.where(new_top == float("-inf"), 0.0, new_top)
            weight = tl.exp(s - level[:, None])
            shrink = tl.exp(top - level)
            mixed = mixed * shrink[:, None] + tl.dot(weight.to(c.dtype), c, input_precision="ieee")
            total = total * shrink + tl.sum(weight, 1)
            top = new_top
        if SUNK:
            sink = tl.load(sinks + head, mask=asked, other=0.0)
            new_top = tl.maximum(top, sink)
            shrink = tl.exp(top - new_top)
            mixed = mixed * shrink[:, None]
            total = total * shrink + tl.exp(sink - new_top)
        mixed = mixed * (1.0 / tl.where(asked, total, 1.0))[:, None]
        tl.store(out + q_place[:, None] + dim[None, :], mixed.to(a.dtype), mask=asked[:, None] & inside[None, :])


def prefix_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    longest: tuple[int, int],
    scale: float,
    window: int,
    softcap: float | None,
    alibi: Tensor | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Launch for q (Nq, H, hd), k and v (N, Hkv, hd), and table (S, 8) on their device. longest: the most queries and
    the most keys of a sequence. window: tokens that a query sees, 0 for all. Returns (Nq, H·hd)."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    (n, heads, head_dim), kv_heads = q.shape, k.shape[1]
    out = torch.empty(n, heads * head_dim, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    share, dims = heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    # Prompts of one step of keys have tiles of their own.
    taken = tile("prefix_attention", TILES, q, dims, "short" if longest[1] <= 16 else "long")
    rows, own_keys = taken["rows"], triton.next_power_of_2(longest[1])
    stacked = min(max(1, 16 // own_keys), max(1, rows // triton.next_power_of_2(longest[0] * share)))
    # At most 16 KB of keys, so that they stay in registers with queries and values.
    keys = max(16, min(own_keys * stacked, taken["keys"], 16384 // (dims * q.element_size())))
    blocks = triton.cdiv(longest[0] * share * stacked, rows)
    _kernel[(len(table) * blocks, triton.cdiv(kv_heads, stacked))](
        q, k, v, table, q if alibi is None else alibi, q if sinks is None else sinks, out,
        share, kv_heads, head_dim, blocks, window, scale, softcap or 0.0,
        CAPPED=softcap is not None, SLOPED=alibi is not None, SUNK=sinks is not None, ROWS=rows, KEYS=keys, DIMS=dims,
        STACKED=stacked, num_warps=taken["num_warps"], num_stages=taken["num_stages"],
    )  # fmt: skip
    return out
