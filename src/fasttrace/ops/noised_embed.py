"""noised_embed: token embeddings plus Gaussian noise that depends on what a row stands for, not on its position."""

import hashlib
import math

import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose, triton_launcher

IMPLEMENTATIONS = ("reference", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
POSITIONS = 1 << 16  # tokens and samples: the two share one 32-bit counter word
_MASK = 0xFFFFFFFF
_BLOCK = 1 << 15  # counters processed at once, so that one int64 word of each stays in the L2 cache


def fact_key(fact_id: str) -> int:
    """The 63-bit number that keys a fact's noise. It is the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(fact_id.encode()).digest()[:8], "little") >> 1


def noised_embed(
    weight: Tensor,
    ids: Tensor,
    sigma: Tensor,
    fact_key: Tensor,
    sample: Tensor,
    token: Tensor,
    seed: int,
    impl: str = "auto",
) -> Tensor:
    """result[i] = weight[ids[i]] + sigma[i] · z(seed, fact_key[i], sample[i], token[i]), z ~ N(0, 1)^d.

    z comes from Philox4x32-10 with the key (low, high half of seed) and, for the dimensions 4c … 4c+3, the counter
    (c, token + 2^16 sample, low, high half of fact_key). So a value never depends on the number or order of rows, the
    device or the process. Box-Muller turns the four words, as u = (word + 1/2) / 2^32, into
    √(-2 ln u0) (cos, sin)(2π u1), √(-2 ln u2) (cos, sin)(2π u3), in float64 rounded once to float32. The sum is also
    computed in float64 and rounded through float32 to the weight's dtype. Rows with sigma = 0 are the embeddings, bit
    for bit. ids may repeat, so one call embeds all samples.

    weight: (V, d) float32, bfloat16, float16 or float64, d ≤ 262144.
    ids: (R,) int64, 0 … V-1.
    sigma: (R,) float32, in the units of the embeddings.
    fact_key: (R,) int64, ≥ 0, see `fact_key()`.
    sample, token: (R,) int64, 0 … 65535.
    seed: 0 … 2^63-1.
    Returns (R, d), the dtype of weight.

    Raises UserError for arguments that differ from these, and for a weight that requires grad while grad is enabled:
    noise is for tracing, which does not differentiate the embedding.
    Source: paper, section 3.2 (corruption); Salmon et al. 2011 (Philox).
    """
    if weight.dim() != 2 or weight.dtype not in DTYPES or weight.shape[1] > 4 * POSITIONS:
        found = f"{tuple(weight.shape)} {weight.dtype}"
        raise UserError(f"noised_embed: expected weight to be (V, d) floating point with d ≤ 262144, got {found}")
    rows = ids.shape[0] if ids.dim() == 1 else -1
    for name, value, dtype in (
        ("ids", ids, torch.int64),
        ("sigma", sigma, torch.float32),
        ("fact_key", fact_key, torch.int64),
        ("sample", sample, torch.int64),
        ("token", token, torch.int64),
    ):
        if value.dim() != 1 or value.shape[0] != rows or value.dtype != dtype:
            expected = f"({rows if rows >= 0 else 'R'},) {dtype}"
            found = f"{tuple(value.shape)} {value.dtype}"
            raise UserError(f"noised_embed: expected {name} to be {expected}, got {found}")
    if not 0 <= seed < 1 << 63:
        raise UserError(f"noised_embed: expected seed in 0 … 2^63-1, got {seed}")
    native.refuse_gradients("noised_embed", weight=weight)
    impl = choose("noised_embed", impl, IMPLEMENTATIONS, weight, ids, sigma, fact_key, sample, token)
    result: Tensor = _op(weight, ids, sigma, fact_key, sample, token, seed, impl)
    return result


@torch.library.custom_op("fasttrace::noised_embed", mutates_args=())
def _op(
    weight: Tensor,
    ids: Tensor,
    sigma: Tensor,
    fact_key: Tensor,
    sample: Tensor,
    token: Tensor,
    seed: int,
    impl: str,
) -> Tensor:
    # Values are checked here, where tensors are never fake. This waits for the device, but only once per wave.
    limits = (
        ("ids", ids, weight.shape[0]),
        ("fact_key", fact_key, 1 << 63),
        ("sample", sample, POSITIONS),
        ("token", token, POSITIONS),
    )
    if ids.numel():
        ends = torch.stack([end for _, value, _ in limits for end in value.aminmax()]).tolist()
        for (name, _, limit), low, high in zip(limits, ends[::2], ends[1::2], strict=True):
            if low < 0 or high >= limit:
                raise UserError(f"noised_embed: expected {name} in 0 … {limit - 1}, got values {low} … {high}")
    if impl == "triton":
        result: Tensor = triton_launcher("noised_embed")(weight, ids, sigma, fact_key, sample, token, seed)
        return result
    return noised_embed_reference(weight, ids, sigma, fact_key, sample, token, seed)


@_op.register_fake
def _(
    weight: Tensor,
    ids: Tensor,
    sigma: Tensor,
    fact_key: Tensor,
    sample: Tensor,
    token: Tensor,
    seed: int,
    impl: str,
) -> Tensor:
    return weight.new_empty(ids.shape[0], weight.shape[1])


def noised_embed_reference(
    weight: Tensor,
    ids: Tensor,
    sigma: Tensor,
    fact_key: Tensor,
    sample: Tensor,
    token: Tensor,
    seed: int,
) -> Tensor:
    """The definition of `noised_embed`, with the same arguments, for any device."""
    result = weight.index_select(0, ids)
    d = weight.shape[1]
    noisy = sigma.nonzero()[:, 0]
    for rows in noisy.split(max(1, 4 * _BLOCK // max(1, d))):
        z = normals(fact_key[rows], sample[rows], token[rows], seed, d)
        row = result[rows].double() + sigma[rows].double()[:, None] * z.double()
        result[rows] = row if weight.dtype == torch.float64 else row.float().to(weight.dtype)
    return result


def normals(fact_key: Tensor, sample: Tensor, token: Tensor, seed: int, d: int) -> Tensor:
    """z(seed, fact_key[i], sample[i], token[i]): (R, d) float32, standard normal; see `noised_embed`."""
    quads = torch.arange(-(-d // 4), device=token.device)
    names = (token + (sample << 16), fact_key & _MASK, fact_key >> 32)
    c0, c1, c2, c3 = torch.broadcast_tensors(quads, *(name[:, None] for name in names))
    words = philox4x32((c0, c1, c2, c3), (seed & _MASK, seed >> 32))
    u = [(word.double() + 0.5) * 2.0**-32 for word in words]
    pairs = []
    for radius_u, angle_u in ((u[0], u[1]), (u[2], u[3])):
        radius, angle = torch.sqrt(-2.0 * torch.log(radius_u)), 2.0 * math.pi * angle_u
        pairs += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(pairs, dim=-1).flatten(1)[:, :d].float()


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32. Four counter words in, four words out: int64 0 … 2^32-1, all of one shape.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # Signed int64 products wrap modulo 2^64, so they still contain both halves of the unsigned product.
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (product1 >> 32) & _MASK ^ c1 ^ k0,
            product1 & _MASK,
            (product0 >> 32) & _MASK ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3
