"""second_moment_ of the keys of a layer, beside torch's own products (which need C and K of one dtype)."""

import torch
from torch import Tensor

from fasttrace.benchmarks.load import Draw, Load, Way, traffic
from fasttrace.ops.second_moment import second_moment_, second_moment_reference

SHAPES = [
    {"tokens": tokens, "m": m, "single": single}
    for tokens, m in ((8192, 1536), (2048, 3072), (256, 1536))  # SmolLM2-135M, GPT-2's m, a small batch
    for single in (0, 1)
]


def load(draw: Draw, tokens: int = 8192, m: int = 1536, single: int = 0) -> Load:
    """K (tokens, m); C (m, m) float64, or float32 where single is 1."""
    K = draw.normal(tokens, m)
    C = torch.zeros(m, m, dtype=torch.float32 if single else torch.float64, device=draw.device)
    rivals: dict[str, Way] = {"product": _product, "addmm_": _addmm} if K.dtype == C.dtype else {}
    gigaflop = tokens * m * (m + 1) / 1e9
    return Load(second_moment_, (C, K), second_moment_reference, rivals, gigabyte=traffic(C, C, K), gigaflop=gigaflop)


def _product(C: Tensor, K: Tensor) -> Tensor:
    C += K.T @ K
    return C


def _addmm(C: Tensor, K: Tensor) -> Tensor:
    return C.addmm_(K.T, K)
