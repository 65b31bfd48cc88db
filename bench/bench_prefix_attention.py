"""prefix_attention on the cells of a fact: tails of every length against kept prefixes, read in place.

python -m pytest bench/bench_prefix_attention.py --benchmark-group-by=param:facts,param:dtype

The load is a layer of a sweep of SmolLM2-135M (9 query heads, 3 key heads of 64): a prompt of 10 tokens whose
subject begins at 1, and for each token from there 5 cells of 10 noise samples. "copied": what an engine that keeps
no prefixes pays, every sequence with keys and values of its own, through scaled_dot_product_attention.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from harness import DEVICE, DTYPES, implementations, measure, name
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn import functional

from fasttrace.ops.prefix_attention import Sequences, prefix_attention, prefix_attention_reference

HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
LENGTH, BEGIN, SAMPLES, CELLS = 10, 1, 10, 5
SCALE = HEAD_DIM**-0.5


def cells(facts: int) -> tuple[Sequences, int]:
    """The sequences of every cell, and how many rows of keys there are.

    Rows of a fact: its clean prompt, then its samples from the subject on; after all facts' rows, the cells' tails.
    """
    kept = LENGTH + SAMPLES * (LENGTH - BEGIN)
    table, queries, rows = [], 0, facts * kept
    for fact in range(facts):
        for token in range(BEGIN, LENGTH):
            tail = LENGTH - token
            for sample in [*range(SAMPLES)] * CELLS:
                second = fact * kept + LENGTH + sample * (LENGTH - BEGIN)
                table.append((queries, tail, fact * kept, BEGIN, second, token - BEGIN, rows, tail))
                queries, rows = queries + tail, rows + tail
    return Sequences(np.array(table, dtype=np.int64)), rows


def copied(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sequences: Sequences, scale: float) -> torch.Tensor:
    """As many whole prompts as there are sequences."""
    n = len(sequences)
    q, k, v = (x[:1].expand(n, LENGTH, -1, -1).transpose(1, 2).contiguous() for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)


@implementations(
    auto=prefix_attention, reference=prefix_attention_reference, compiled=prefix_attention_reference, copied=copied
)
@DTYPES
@pytest.mark.parametrize("facts", [1, 8])
def test_prefix_attention(
    benchmark: BenchmarkFixture, facts: int, dtype: torch.dtype, impl: str, function: Callable[..., torch.Tensor]
) -> None:
    sequences, rows = cells(facts)
    assert sequences.groups  # made once a layer for all calls, and not to be seen by the compiler
    q = torch.randn(sequences.n_queries, HEADS, HEAD_DIM, device=DEVICE).to(dtype)
    k, v = (torch.randn(rows, KV_HEADS, HEAD_DIM, device=DEVICE).to(dtype) for _ in range(2))
    tail = sequences.table[:, 1]
    pairs = int((tail * LENGTH - tail * (tail - 1) // 2).sum())
    case = f"{facts} facts, {len(sequences)} sequences {name(dtype)}"
    measure(
        benchmark, "prefix_attention", case, impl, function, q, k, v, sequences, SCALE,
        gigaflop=4 * pairs * HEADS * HEAD_DIM / 1e9,
    )  # fmt: skip
