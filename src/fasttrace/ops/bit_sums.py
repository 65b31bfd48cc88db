"""bit_sums: sums of a weight's bits, which show whether any of it has changed, in one pass over it."""

from functools import lru_cache

import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose

WORDS = 4096  # of a sum


def bit_sums(weight: Tensor, impl: str = "auto") -> Tensor:
    """weight → (n // 4096 + 1,) int64: of its n words, a sum of each 4,096 and one of the rest, every word times the
    random number of its place, modulo 2⁶⁴.

    weight: any shape, dtype and strides. A word has 32 bits, or as many as a narrower number. Two numbers of 16 bits
        are one word where their count and the weight's offset in its storage are even.
    impl: "reference" is torch, on any device. "native" is the compiled CPU kernel. "auto" takes the one for the device.

    The random numbers are the same for every call, and stores keep hashes of the sums, so every impl has the same sums,
    bit for bit. If words change, their sum stays as it was with a probability of at most 2⁻³², whichever they are.
    Raises UserError for a weight that is not strided (such as a sparse one), and for an impl that cannot run here.
    Source: universal hashing, Carter and Wegman 1979 (doi 10.1016/0022-0000(79)90044-8).
    """
    if weight.layout != torch.strided:
        raise UserError(f"bit_sums: expected a strided weight, got {weight.layout}")
    on_cpu = weight.device.type == "cpu"
    why = native.unavailable_reason() if on_cpu else f"the compiled kernel is for the CPU, weight is on {weight.device}"
    if choose("bit_sums", impl, {"reference": None, "native": why}, weight) == "reference":
        return bit_sums_reference(weight)
    words = _words(weight)
    sums = torch.empty(len(words) // WORDS + 1, dtype=torch.int64)
    torch.ops.fasttrace.bit_sums_(words, _factors(weight.device), sums)
    return sums


def bit_sums_reference(weight: Tensor) -> Tensor:
    """The definition of `bit_sums`, for any device."""
    words, factors = _words(weight), _factors(weight.device)
    rows = words[: len(words) // WORDS * WORDS].view(-1, WORDS)
    last = words[rows.numel() :]
    # The products of one part stay in a cache of the CPU, or fill a GPU. Their memory is used again, because new memory
    # takes seven times as long as the products. On a busy CPU, smaller parts would mostly wait for threads.
    parts = rows.split(2**7 if weight.device.type == "cpu" else 2**13)
    products = torch.empty((len(parts[0]), WORDS), dtype=torch.int64, device=weight.device)
    sums = [torch.mul(part, factors, out=products[: len(part)]).sum(1) for part in parts]
    return torch.cat([*sums, (last * factors[: len(last)]).sum()[None]])


def _words(weight: Tensor) -> Tensor:
    """(n,) int8, int16 or int32: the weight's bits, in place if it is contiguous."""
    flat = weight.reshape(-1).contiguous()
    flat = flat.as_strided(flat.shape, (1,))  # a single number may keep another stride, with which it has no view
    narrow = {1: torch.int8, 2: torch.int16}.get(flat.element_size(), torch.int32)
    even = all(n % 2 == 0 for n in (flat.numel(), flat.storage_offset()))
    return flat.view(torch.int32 if narrow is torch.int16 and even else narrow)


@lru_cache
def _factors(device: torch.device) -> Tensor:
    """(WORDS,) int64 random numbers."""
    fixed = torch.Generator().manual_seed(0)
    return torch.randint(-(2**63), 2**63 - 1, (WORDS,), generator=fixed).to(device)


def _fake(words: Tensor, factors: Tensor, sums: Tensor) -> None:
    """The op works in place and returns nothing, so there is nothing to fake."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::bit_sums_")(_fake)
