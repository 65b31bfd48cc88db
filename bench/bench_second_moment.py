"""second_moment_ at the sizes of a real layer, against its reference and against torch's own products.

python -m pytest bench/bench_second_moment.py --benchmark-group-by=param:shape
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.ops.second_moment import second_moment_, second_moment_reference

SHAPES = [(8192, 1536), (2048, 3072), (256, 1536)]  # (tokens, m): SmolLM2-135M, GPT-2's m, a small batch


def plain(C: torch.Tensor, K: torch.Tensor) -> None:
    C += K.T @ K


def addmm(C: torch.Tensor, K: torch.Tensor) -> None:
    C.addmm_(K.T, K)


def native(C: torch.Tensor, K: torch.Tensor) -> None:
    second_moment_(C, K, impl="native")


METHODS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], object], torch.dtype, torch.dtype]] = {
    "native, C float64": (native, torch.float64, torch.float32),
    "native, C float32": (native, torch.float32, torch.float32),
    "native, C float64, K bfloat16": (native, torch.float64, torch.bfloat16),
    "reference": (second_moment_reference, torch.float64, torch.float32),
    "C += K.T @ K, float32": (plain, torch.float32, torch.float32),
    "C.addmm_(K.T, K), float32": (addmm, torch.float32, torch.float32),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_second_moment(benchmark: BenchmarkFixture, shape: tuple[int, int], method: str) -> None:
    function, dtype, key_dtype = METHODS[method]
    n, m = shape
    K = torch.randn(n, m, generator=torch.Generator().manual_seed(0)).to(key_dtype)
    C = torch.zeros(m, m, dtype=dtype)
    benchmark.extra_info["gigaflop"] = n * m * (m + 1) / 1e9
    benchmark.pedantic(function, args=(C, K), rounds=7, warmup_rounds=2)
