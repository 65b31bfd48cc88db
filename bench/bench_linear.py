"""linear by oneDNN against torch.nn.functional.linear at the products of SmolLM2-135M, and the gradient.

OMP_NUM_THREADS=2 python -m pytest bench/bench_linear.py --benchmark-group-by=func,param:km,param:rows
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from harness import DEVICE, DTYPES, implementations, measure, name
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.ops.linear import linear, linear_reference

PRODUCTS = [(576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49152)]  # k, m
ROWS = [64, 210, 1024, 4096]
KM = "{0[0]}->{0[1]}".format


def reference(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return linear_reference(x, w, None)


def gradient(product: Callable[..., torch.Tensor], x: torch.Tensor, w: torch.Tensor, upstream: torch.Tensor) -> object:
    return torch.autograd.grad(product(x, w), x, upstream)


@implementations(auto=linear, reference=reference, compiled=reference)
@DTYPES
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("km", PRODUCTS, ids=KM)
def test_forward(
    benchmark: BenchmarkFixture,
    km: tuple[int, int],
    rows: int,
    dtype: torch.dtype,
    impl: str,
    function: Callable[..., torch.Tensor],
) -> None:
    k, m = km
    x, w = (torch.randn(n, k, device=DEVICE).to(dtype) for n in (rows, m))
    case = f"{rows}x{k}->{m} {name(dtype)}"
    measure(benchmark, "linear", case, impl, function, x, w, gigaflop=2 * rows * k * m / 1e9)


@implementations(auto=linear, reference=reference)
@pytest.mark.parametrize("rows", ROWS[:3])
@pytest.mark.parametrize("km", PRODUCTS[:4], ids=KM)
def test_forward_and_gradient(
    benchmark: BenchmarkFixture, km: tuple[int, int], rows: int, impl: str, function: Callable[..., torch.Tensor]
) -> None:
    k, m = km
    x, w, upstream = (torch.randn(*shape, device=DEVICE) for shape in ((rows, k), (m, k), (rows, m)))
    measure(
        benchmark, "linear", f"{rows}x{k}->{m} float32, with gradient", impl, partial(gradient, function),
        x.requires_grad_(), w, upstream, gigaflop=4 * rows * k * m / 1e9, grad=True,
    )  # fmt: skip
