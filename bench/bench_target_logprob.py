"""target_logprob and its gradient, against its reference and whole rows of logits, plain and under torch.compile.

python -m pytest bench/bench_target_logprob.py --benchmark-group-by=func,param:rows,param:dtype
"""

from collections.abc import Callable

import pytest
import torch
from harness import DEVICE, DTYPES, implementations, measure, name
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn import functional

from fasttrace.ops.target_logprob import target_logprob, target_logprob_reference

V, D, EPS = 49152, 576, 1e-5  # SmolLM2-135M
Op = Callable[..., torch.Tensor]


def whole_rows(h: torch.Tensor, weight: torch.Tensor, unembed: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    logits = functional.linear(functional.rms_norm(h, h.shape[1:], weight, EPS), unembed)
    return logits.float().log_softmax(-1).gather(1, target[:, None])[:, 0]


def op(h: torch.Tensor, weight: torch.Tensor, unembed: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return target_logprob(h, weight, None, EPS, "rms", unembed, None, target)


def reference(h: torch.Tensor, weight: torch.Tensor, unembed: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return target_logprob_reference(h, weight, None, EPS, "rms", unembed, None, target, None)[0]


def gradient(function: Op) -> Op:
    return lambda h, *rest: torch.autograd.grad(function(h, *rest).sum(), h)[0]


def draw(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    h, weight = torch.randn(rows, D, device=DEVICE).to(dtype), torch.ones(D, device=DEVICE).to(dtype)
    unembed = (0.05 * torch.randn(V, D, device=DEVICE)).to(dtype)
    return h, weight, unembed, torch.randint(0, V, (rows,), device=DEVICE)


@implementations(
    auto=op, reference=reference, compiled=reference, whole_rows=whole_rows, compiled_whole_rows=whole_rows
)
@DTYPES
@pytest.mark.parametrize("rows", [16, 512])
def test_forward(benchmark: BenchmarkFixture, rows: int, dtype: torch.dtype, impl: str, function: Op) -> None:
    case, work = f"{rows} rows {name(dtype)}", 2 * rows * V * D / 1e9
    measure(benchmark, "target_logprob", case, impl, function, *draw(rows, dtype), gigaflop=work, rounds=5)


@implementations(auto=op, whole_rows=whole_rows, compiled_whole_rows=whole_rows)
@pytest.mark.parametrize("rows", [16, 128])
def test_forward_and_gradient(benchmark: BenchmarkFixture, rows: int, impl: str, function: Op) -> None:
    h, *rest = draw(rows, torch.float32)
    case = f"{rows} rows float32, with gradient"
    # The op forms the logits twice rather than keep them.
    work = (6 if impl == "auto" else 4) * rows * V * D / 1e9
    h.requires_grad_()
    told = {"gigaflop": work, "grad": True, "rounds": 5}
    measure(benchmark, "target_logprob", case, impl, gradient(function), h, *rest, **told)
