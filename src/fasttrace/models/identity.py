"""Sums that show whether weights have changed."""

from functools import lru_cache

import torch
from torch import Tensor

WORDS = 4096  # of a sum


def bit_sums(weight: Tensor) -> Tensor:
    """weight: any shape → (n,) int64, a sum of each 4,096 words of its bits, every word times a random number.

    The numbers are the same for every call, and sums are modulo 2⁶⁴. If words change, their sum stays as it was with a
    probability of at most 2⁻³², whichever they are (universal hashing: Carter and Wegman, 1979).
    """
    flat, factors = weight.reshape(-1).contiguous(), _factors(weight.device)
    narrow = {1: torch.int8, 2: torch.int16}.get(flat.element_size(), torch.int32)
    even = all(n % 2 == 0 for n in (flat.numel(), flat.storage_offset()))
    words = flat.view(torch.int32 if narrow is torch.int16 and even else narrow)
    rows = words[: len(words) // WORDS * WORDS].view(-1, WORDS)
    last = words[rows.numel() :]
    # The products of one part stay in a cache of the CPU, or fill a GPU. Their memory is used again, because new memory
    # takes seven times as long as the products. On a busy CPU, smaller parts would mostly wait for threads.
    parts = rows.split(2**7 if weight.device.type == "cpu" else 2**13)
    products = torch.empty((len(parts[0]), WORDS), dtype=torch.int64, device=weight.device)
    sums = [torch.mul(part, factors, out=products[: len(part)]).sum(1) for part in parts]
    return torch.cat([*sums, (last * factors[: len(last)]).sum()[None]])


@lru_cache
def _factors(device: torch.device) -> Tensor:
    """(WORDS,) int64 random numbers."""
    fixed = torch.Generator().manual_seed(0)
    return torch.randint(-(2**63), 2**63 - 1, (WORDS,), generator=fixed).to(device)
