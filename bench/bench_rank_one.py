"""rank_one_ on a down-projection, both orientations, against its reference and torch's addr_.

python -m pytest bench/bench_rank_one.py --benchmark-group-by=param:dtype,param:shape
"""

from collections.abc import Callable

import pytest
import torch
from harness import DEVICE, DTYPES, implementations, measure, name, traffic
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.ops.rank_one import rank_one_, rank_one_reference

SHAPES = [(576, 1536), (4096, 14336)]  # W (d, m): SmolLM2-135M, Mistral-7B


def addr(W: torch.Tensor, u: torch.Tensor, v: torch.Tensor, alpha: float) -> torch.Tensor:
    return W.addr_(u, v, alpha=alpha)


@implementations(auto=rank_one_, reference=rank_one_reference, compiled=rank_one_reference, addr_=addr)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}".format)
def test_rank_one(
    benchmark: BenchmarkFixture,
    shape: tuple[int, int],
    dtype: torch.dtype,
    transposed: bool,
    impl: str,
    function: Callable[..., torch.Tensor],
) -> None:
    a, b = shape
    W = torch.zeros(b, a, dtype=dtype, device=DEVICE).T if transposed else torch.zeros(a, b, dtype=dtype, device=DEVICE)
    u, v = (torch.randn(n, device=DEVICE).to(dtype) for n in shape)
    case = f"{a}x{b} {name(dtype)}, contiguous {'columns' if transposed else 'rows'}"
    measure(benchmark, "rank_one_", case, impl, function, W, u, v, 1e-3, gigabyte=traffic(W, W))
