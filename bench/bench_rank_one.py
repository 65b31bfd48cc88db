"""rank_one_ on a down-projection, both orientations, against its reference and torch's addr_.

python -m pytest bench/bench_rank_one.py --benchmark-group-by=param:dtype,param:shape
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.ops.rank_one import rank_one_, rank_one_reference

SHAPES = [(576, 1536), (4096, 14336)]  # W (d, m): SmolLM2-135M, Mistral-7B


def native(W: torch.Tensor, u: torch.Tensor, v: torch.Tensor, alpha: float) -> None:
    rank_one_(W, u, v, alpha, impl="native")


def addr(W: torch.Tensor, u: torch.Tensor, v: torch.Tensor, alpha: float) -> None:
    W.addr_(u, v, alpha=alpha)


METHODS = {"native": native, "reference": rank_one_reference, "addr_": addr}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_rank_one(
    benchmark: BenchmarkFixture, shape: tuple[int, int], dtype: torch.dtype, transposed: bool, method: str
) -> None:
    a, b = shape
    W = torch.zeros(b, a, dtype=dtype).T if transposed else torch.zeros(a, b, dtype=dtype)
    u, v = torch.randn(a).to(dtype), torch.randn(b).to(dtype)
    benchmark.extra_info["gigabyte"] = 2 * W.numel() * W.element_size() / 1e9
    benchmark.pedantic(METHODS[method], args=(W, u, v, 1e-3), rounds=7, warmup_rounds=2)
