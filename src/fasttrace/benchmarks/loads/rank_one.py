"""rank_one_ on a down-projection, by rows or by columns, beside torch's addr_."""

import torch
from torch import Tensor

from fasttrace.benchmarks.load import Draw, Load, traffic
from fasttrace.ops.rank_one import rank_one_, rank_one_reference

SHAPES = [{"d": d, "m": m, "columns": columns} for d, m in ((576, 1536), (4096, 14336)) for columns in (0, 1)]


def load(draw: Draw, d: int = 576, m: int = 1536, columns: int = 0) -> Load:
    """W (d, m), contiguous columns where columns is 1 (GPT-2's layout); u (d,), v (m,)."""
    shape = (m, d) if columns else (d, m)
    W = torch.zeros(shape, dtype=draw.dtype, device=draw.device)
    W = W.T if columns else W
    args = (W, draw.normal(d), draw.normal(m), 1e-3)
    return Load(rank_one_, args, rank_one_reference, rivals={"addr_": _addr}, gigabyte=traffic(W, W))


def _addr(W: Tensor, u: Tensor, v: Tensor, alpha: float) -> Tensor:
    return W.addr_(u, v, alpha=alpha)
