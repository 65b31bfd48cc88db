"""target_logprob and its gradient, against whole rows of logits, plain and under torch.compile.

python -m pytest bench/bench_target_logprob.py --benchmark-group-by=func,param:rows,param:dtype
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn import functional

from fasttrace.ops.target_logprob import target_logprob

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
V, D, EPS = 49152, 576, 1e-5  # SmolLM2-135M


def whole_rows(
    h: torch.Tensor, weight: torch.Tensor, unembed: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    logits = functional.linear(functional.rms_norm(h, h.shape[1:], weight, EPS), unembed)
    return logits.float().log_softmax(-1).gather(1, target[:, None])[:, 0]


def op(h: torch.Tensor, weight: torch.Tensor, unembed: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return target_logprob(h, weight, None, EPS, "rms", unembed, None, target)


METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "op": op,
    "whole rows": whole_rows,
    "compiled whole rows": torch.compile(whole_rows, dynamic=True),
}


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def draw(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    h, weight = torch.randn(rows, D, device=DEVICE).to(dtype), torch.ones(D, device=DEVICE).to(dtype)
    unembed = (0.05 * torch.randn(V, D, device=DEVICE)).to(dtype)
    return h, weight, unembed, torch.randint(0, V, (rows,), device=DEVICE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [16, 512])
def test_forward(benchmark: BenchmarkFixture, rows: int, dtype: torch.dtype, method: str) -> None:
    args = draw(rows, dtype)
    benchmark.extra_info["gigaflop"] = 2 * rows * V * D / 1e9

    def run() -> None:
        METHODS[method](*args)
        synchronize()

    with torch.inference_mode():
        benchmark.pedantic(run, rounds=5, warmup_rounds=2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [16, 128])
def test_forward_and_gradient(benchmark: BenchmarkFixture, rows: int, method: str) -> None:
    h, *rest = draw(rows, torch.float32)
    h.requires_grad_()
    # The op forms the logits twice rather than keep them.
    benchmark.extra_info["gigaflop"] = (6 if method == "op" else 4) * rows * V * D / 1e9

    def run() -> None:
        torch.autograd.grad(METHODS[method](h, *rest).sum(), h)
        synchronize()

    benchmark.pedantic(run, rounds=5, warmup_rounds=2)
