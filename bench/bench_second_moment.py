"""second_moment_ at the sizes of a real layer, against its reference and against torch's own products.

python -m pytest bench/bench_second_moment.py --benchmark-group-by=param:shape
"""

from collections.abc import Callable

import pytest
import torch
from harness import DEVICE, implementations, measure, name
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.ops.second_moment import second_moment_, second_moment_reference

SHAPES = [(8192, 1536), (2048, 3072), (256, 1536)]  # (tokens, m): SmolLM2-135M, GPT-2's m, a small batch
# dtypes of C and of K
EXACT, HALF, SINGLE = (
    (torch.float64, torch.float32), (torch.float64, torch.bfloat16), (torch.float32, torch.float32)
)  # fmt: skip


def plain(C: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    C += K.T @ K
    return C


def addmm(C: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    return C.addmm_(K.T, K)


@implementations(
    auto=(second_moment_, EXACT, HALF, SINGLE),
    reference=(second_moment_reference, EXACT, HALF, SINGLE),
    compiled=(second_moment_reference, EXACT, HALF, SINGLE),
    product=(plain, SINGLE),
    addmm_=(addmm, SINGLE),
)
@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("dtypes", [EXACT, HALF, SINGLE], ids=["float64 of float32", "float64 of bfloat16", "float32"])
def test_second_moment(
    benchmark: BenchmarkFixture,
    shape: tuple[int, int],
    dtypes: tuple[torch.dtype, torch.dtype],
    impl: str,
    function: tuple[Callable[..., torch.Tensor], ...],
) -> None:
    call, *taken = function
    if dtypes not in taken:
        pytest.skip("torch's products take one dtype")
    n, m = shape
    K = torch.randn(n, m, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtypes[1])
    C = torch.zeros(m, m, dtype=dtypes[0], device=DEVICE)
    case = f"{n}x{m} K {name(dtypes[1])}, C {name(dtypes[0])}"
    measure(benchmark, "second_moment_", case, impl, call, C, K, gigaflop=n * m * (m + 1) / 1e9)
