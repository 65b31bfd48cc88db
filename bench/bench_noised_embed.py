"""noised_embed for the corrupted rows of a batch of facts: op, reference, torch.compile, torch.randn.

python -m pytest bench/bench_noised_embed.py --benchmark-group-by=param:facts,param:dtype
"""

from collections.abc import Callable

import pytest
import torch
from harness import DEVICE, DTYPES, implementations, measure, name
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.ops.noised_embed import noised_embed, noised_embed_reference, normals

V, D, TOKENS, SAMPLES, SUBJECT = 49152, 576, 10, 10, 4  # SmolLM2-135M; a fact's prompt, its rows, its subject


def rows_of(facts: int) -> tuple[torch.Tensor, ...]:
    shape = (facts, SAMPLES, TOKENS)
    grid = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    fact, sample, token = (axis.flatten().to(DEVICE) for axis in grid)
    return torch.randint(0, V, fact.shape, device=DEVICE), 0.4 * (token < SUBJECT), fact * 977, sample, token


def plain(weight: torch.Tensor, ids: torch.Tensor, sigma: torch.Tensor, *_: object) -> torch.Tensor:
    """The cost of the task with noise that does depend on the batch: not a substitute, a yardstick."""
    noise = torch.randn(len(ids), weight.shape[1], device=weight.device)
    return weight[ids] + (sigma[:, None] * noise).to(weight.dtype)


def every_row(
    weight: torch.Tensor,
    ids: torch.Tensor,
    sigma: torch.Tensor,
    fact_key: torch.Tensor,
    sample: torch.Tensor,
    token: torch.Tensor,
    seed: int,
) -> torch.Tensor:
    """The definition without its blocks, for rows of no noise too: what a compiler can take."""
    z = normals(fact_key, sample, token, seed, weight.shape[1])
    return (weight[ids].double() + sigma.double()[:, None] * z.double()).float().to(weight.dtype)


@implementations(
    auto=noised_embed, reference=noised_embed_reference, compiled_every_row=every_row, randn=plain
)
@DTYPES
@pytest.mark.parametrize("facts", [1, 24])
def test_noised_embed(
    benchmark: BenchmarkFixture, facts: int, dtype: torch.dtype, impl: str, function: Callable[..., torch.Tensor]
) -> None:
    weight, args = torch.randn(V, D, device=DEVICE).to(dtype), rows_of(facts)
    moved = 2 * len(args[0]) * D * weight.element_size() / 1e9
    case = f"{facts} facts, {len(args[0])}x{D} {name(dtype)}"
    measure(benchmark, "noised_embed", case, impl, function, weight, *args, 1, gigabyte=moved)
