"""linear by oneDNN against torch.nn.functional.linear at the products of SmolLM2-135M, and the gradient.

OMP_NUM_THREADS=2 python -m pytest bench/bench_linear.py --benchmark-group-by=func,param:km,param:rows
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.ops.linear import linear

PRODUCTS = [(576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49152)]  # k, m
ROWS = [64, 210, 1024, 4096]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("km", PRODUCTS, ids=lambda km: f"{km[0]}->{km[1]}")
def test_forward(
    benchmark: BenchmarkFixture, km: tuple[int, int], rows: int, dtype: torch.dtype, impl: str
) -> None:
    k, m = km
    x, w = torch.randn(rows, k).to(dtype), torch.randn(m, k).to(dtype)
    benchmark.extra_info["gigaflop"] = 2 * rows * k * m / 1e9
    with torch.inference_mode():
        benchmark.pedantic(lambda: linear(x, w, impl=impl), rounds=7, warmup_rounds=2)


@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize("rows", ROWS[:3])
@pytest.mark.parametrize("km", PRODUCTS[:4], ids=lambda km: f"{km[0]}->{km[1]}")
def test_forward_and_gradient(benchmark: BenchmarkFixture, km: tuple[int, int], rows: int, impl: str) -> None:
    k, m = km
    x, w, upstream = torch.randn(rows, k, requires_grad=True), torch.randn(m, k), torch.randn(rows, m)
    benchmark.extra_info["gigaflop"] = 4 * rows * k * m / 1e9
    benchmark.pedantic(
        lambda: torch.autograd.grad(linear(x, w, impl=impl), x, upstream), rounds=7, warmup_rounds=2
    )
