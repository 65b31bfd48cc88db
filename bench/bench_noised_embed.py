"""noised_embed for the corrupted rows of a batch of facts: op, reference, torch.compile, torch.randn.

python -m pytest bench/bench_noised_embed.py --benchmark-group-by=param:rows,param:dtype
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.ops.noised_embed import noised_embed, noised_embed_reference, normals

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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


METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "op": noised_embed,
    "reference": noised_embed_reference,
    "compiled, every row": torch.compile(every_row, dynamic=False),
    "randn": plain,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("facts", [1, 24], ids=["1 fact", "24 facts"])
def test_noised_embed(benchmark: BenchmarkFixture, facts: int, dtype: torch.dtype, method: str) -> None:
    weight, args = torch.randn(V, D, device=DEVICE).to(dtype), rows_of(facts)
    benchmark.extra_info["gigabyte"] = 2 * len(args[0]) * D * weight.element_size() / 1e9

    def run() -> None:
        METHODS[method](weight, *args, 1)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with torch.no_grad():
        benchmark.pedantic(run, rounds=7, warmup_rounds=2)
